"""The decoder that all supported families share: embedding, layers, norm, head.

Knows how the parts are wired and how weights become merged products; knows nothing of
configuration files (see :mod:`octavo.models.decoder_config`) or of how an operation is carried
out (see :mod:`octavo.kernels.interface`).

Between layers two tensors travel: ``residual``, the running sum, which the kernels add to in
place, and ``hidden``, its normalised form that the next product reads. Each layer therefore
ends with the norm of whatever follows it, so that every addition is fused with a norm::

    residual = embed(ids)                      hidden = norm_0(residual)
    layer i:  hidden = o(attend(rope(qkv(hidden))))      add, norm
              hidden = down(act(gate_up(hidden)))        add, norm_{i+1} (the last: the model's)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo import quantization
from octavo.kernels.adapters import AdapterStep, Projection
from octavo.kernels.interface import AttentionBatch, Kernels, Linear, PackedTensor, WeightPart
from octavo.layers.rotary import Rope, cos_sin_table
from octavo.models.decoder_config import Activation, DecoderConfig
from octavo.models.interface import WeightSource


@dataclass(frozen=True, slots=True)
class WeightNames:
    """Where a family keeps its weights, in Hugging Face's naming."""

    prefix: str = "model."
    head: str = "lm_head.weight"
    mlp_norm: str = "post_attention_layernorm"
    """Norm before the MLP. Gemma gives this name to another one."""
    post_attention_norm: str = "post_attention_layernorm"
    post_mlp_norm: str = "post_feedforward_layernorm"

    def layer(self, index: int) -> str:
        return f"{self.prefix}layers.{index}."


class Decoder:
    """A :class:`octavo.models.interface.CausalLM`."""

    def __init__(
        self,
        config: DecoderConfig,
        kernels: Kernels,
        embedding: Linear,
        head: Linear,
        first_norm: Tensor,
        layers: Sequence[DecoderLayer],
        activation_dtype: torch.dtype,
        size_bytes: int,
    ) -> None:
        self._config = config
        self._embedding = embedding
        self._head = head
        self._first_norm = first_norm
        self._layers = list(layers)
        self._dtype = activation_dtype
        self._size_bytes = size_bytes
        self._rms_norm = kernels.rms_norm
        # Rounded to the activations' dtype, as the checkpoint's own code does.
        self._embedding_scale = torch.tensor(config.embedding_scale, dtype=activation_dtype).item()

    @property
    def num_layers(self) -> int:
        return self._config.num_layers

    @property
    def num_kv_heads(self) -> int:
        return self._config.heads.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self._config.heads.head_dim

    @property
    def vocab_size(self) -> int:
        return self._config.vocab_size

    @property
    def weights_size_bytes(self) -> int:
        return self._size_bytes

    @property
    def projections(self) -> Sequence[Projection]:
        return projections_of(self._config)

    @property
    def adapted(self) -> Sequence[Linear]:
        return [product for layer in self._layers for product in layer.products]

    @property
    def products(self) -> Sequence[Linear]:
        return [*self._layers[0].products, self._head]

    def forward(
        self,
        token_ids: Tensor,
        kv_caches: Sequence[tuple[Tensor, Tensor]],
        batch: AttentionBatch,
        adapters: AdapterStep | None = None,
        is_last_only: bool = False,
    ) -> Tensor:
        residual = self._embed(token_ids)
        hidden = self._rms_norm(residual, self._first_norm, self._config.norm_eps)
        is_last_only = is_last_only and not batch.is_decode
        ends = LastTokens.of(batch, adapters) if is_last_only else None
        final = len(self._layers) - 1
        for index, (layer, caches) in enumerate(zip(self._layers, kv_caches, strict=True)):
            kept = ends if index == final else None
            hidden = layer.forward(hidden, residual, *caches, batch, adapters, kept)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)

    def _embed(self, token_ids: Tensor) -> Tensor:
        rows = self._embedding.rows(token_ids).to(self._dtype)
        return rows if self._embedding_scale == 1.0 else rows * self._embedding_scale


@dataclass(frozen=True, slots=True)
class LastTokens:
    """The last token of each sequence: all that the last layer need compute, past its keys."""

    index: Tensor
    """``[S], int64``: which of the step's tokens they are."""
    batch: AttentionBatch
    """The same sequences, each with that token alone."""
    adapters: AdapterStep | None

    @classmethod
    def of(cls, batch: AttentionBatch, adapters: AdapterStep | None) -> LastTokens:
        index = batch.last_tokens
        own = None if adapters is None else adapters.of(index)
        return cls(index, batch.of_last_tokens(), own)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's weights, prepared for the device. Norms are float32 and hold whole factors."""

    qkv: Linear
    output: Linear
    gate_up: Linear
    down: Linear
    mlp_norm: Tensor
    next_norm: Tensor
    """The norm of whatever follows: the next layer's first, or the model's last."""
    q_norm: Tensor | None
    k_norm: Tensor | None
    post_attention_norm: Tensor | None
    post_mlp_norm: Tensor | None


class DecoderLayer:
    """Attention and MLP: nine kernel calls, eleven with Gemma's norms, and nothing between."""

    def __init__(
        self,
        config: DecoderConfig,
        index: int,
        weights: LayerWeights,
        cos_sin: Tensor,
        kernels: Kernels,
    ) -> None:
        self._weights = weights
        self._first_projection = _PROJECTIONS_PER_LAYER * index
        self._cos_sin = cos_sin
        self._kernels = kernels
        self._num_heads = config.heads.num_heads
        self._query_size = config.heads.query_size
        self._window = config.windows[index]
        self._scale = config.attention_scale
        self._eps = config.norm_eps
        self._is_silu = config.activation is Activation.SILU
        self._activate = _activation(kernels, config.activation)

    @property
    def products(self) -> Sequence[Linear]:
        weights = self._weights
        return [weights.qkv, weights.output, weights.gate_up, weights.down]

    def forward(
        self,
        hidden: Tensor,
        residual: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: AttentionBatch,
        adapters: AdapterStep | None = None,
        kept: LastTokens | None = None,
    ) -> Tensor:
        """``hidden, residual: [T, hidden_size]`` → the next ``hidden``; adds to ``residual``.

        ``kept``: tokens to go on with once all keys and values are written; None: all.
        """
        kernels, weights, eps = self._kernels, self._weights, self._eps
        qkv = self._project(0, weights.qkv, hidden, adapters)
        q = kernels.rope_and_cache(
            qkv,
            self._cos_sin,
            key_cache,
            value_cache,
            batch,
            self._num_heads,
            weights.q_norm,
            weights.k_norm,
            eps,
        )
        if kept is not None:
            q, residual, batch = q[kept.index], residual[kept.index], kept.batch
            adapters = kept.adapters
        attended = kernels.paged_attention(
            q, key_cache, value_cache, batch, self._scale, self._window, qkv
        )
        attended = attended.view(-1, self._query_size)
        hidden = self._project(1, weights.output, attended, adapters)
        if weights.post_attention_norm is not None:
            hidden = kernels.rms_norm(hidden, weights.post_attention_norm, eps)
        hidden = kernels.add_rms_norm(hidden, residual, weights.mlp_norm, eps)
        hidden = self._gate(hidden, adapters)
        hidden = self._project(3, weights.down, hidden, adapters)
        if weights.post_mlp_norm is not None:
            hidden = kernels.rms_norm(hidden, weights.post_mlp_norm, eps)
        return kernels.add_rms_norm(hidden, residual, weights.next_norm, eps)

    def _project(
        self, number: int, linear: Linear, x: Tensor, adapters: AdapterStep | None
    ) -> Tensor:
        """``number``: which of the layer's projections it is."""
        if adapters is None:
            return linear(x)
        return adapters.project(self._first_projection + number, linear, x)

    def _gate(self, x: Tensor, adapters: AdapterStep | None) -> Tensor:
        linear = self._weights.gate_up
        if adapters is None:
            return self._activate(linear(x))
        return adapters.project_gated(self._first_projection + 2, linear, x, self._is_silu)


_PROJECTIONS_PER_LAYER = 4


def projections_of(config: DecoderConfig) -> list[Projection]:
    """What adapters may change: q/k/v, output, gate/up and down of every layer."""
    heads, size, inner = config.heads, config.hidden_size, config.intermediate_size
    merged: list[tuple[tuple[str, ...], int, tuple[int, ...]]] = [
        (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            size,
            (heads.query_size, heads.kv_size, heads.kv_size),
        ),
        (("self_attn.o_proj",), heads.query_size, (size,)),
        (("mlp.gate_proj", "mlp.up_proj"), size, (inner, inner)),
        (("mlp.down_proj",), inner, (size,)),
    ]
    assert len(merged) == _PROJECTIONS_PER_LAYER
    return [
        Projection(layer, names, in_features, out_features)
        for layer in range(config.num_layers)
        for names, in_features, out_features in merged
    ]


def _activation(kernels: Kernels, activation: Activation) -> Callable[[Tensor], Tensor]:
    match activation:
        case Activation.SILU:
            return kernels.silu_mul
        case Activation.GELU_TANH:
            return kernels.gelu_tanh_mul


def build_decoder(
    config: DecoderConfig,
    names: WeightNames,
    weights: WeightSource,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
) -> Decoder:
    """Pull a family's weights, merge what shares an input, and wire a decoder.

    ``dtype`` is how dense weights are stored; activations have it too, except on the CPU, where
    they are float32. Raises :class:`octavo.errors.WeightError` for an absent or ill-shaped
    tensor.
    """
    return _Builder(config, names, weights, kernels, dtype, device).build(max_model_len)


class _Builder:
    """Holds what every step of building needs; gone when the decoder stands."""

    def __init__(
        self,
        config: DecoderConfig,
        names: WeightNames,
        weights: WeightSource,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._config = config
        self._names = names
        self._weights = weights
        self._kernels = kernels
        self._dtype = dtype
        self._device = device
        self._size_bytes = 0

    def build(self, max_model_len: int) -> Decoder:
        config, names = self._config, self._names
        table_shape = (config.vocab_size, config.hidden_size)
        embedding = self._linear([(f"{names.prefix}embed_tokens", table_shape)], False)
        first_norm = next_norm = self._norm(f"{names.layer(0)}input_layernorm", config.hidden_size)
        tables = self._rope_tables(max_model_len)
        layers = []
        for index in range(config.num_layers):
            following = (
                f"{names.layer(index + 1)}input_layernorm"
                if index + 1 < config.num_layers
                else f"{names.prefix}norm"
            )
            next_norm = self._norm(following, config.hidden_size)
            layer_weights = self._layer(names.layer(index), next_norm)
            cos_sin = tables[config.ropes[index]]
            layers.append(DecoderLayer(config, index, layer_weights, cos_sin, self._kernels))
        head = embedding
        if not config.is_tied:
            head = self._linear([(names.head.removesuffix(".weight"), table_shape)], False)
        activation_dtype = torch.float32 if self._device.type == "cpu" else self._dtype
        return Decoder(
            config,
            self._kernels,
            embedding,
            head,
            first_norm,
            layers,
            activation_dtype,
            self._size_bytes,
        )

    def _layer(self, prefix: str, next_norm: Tensor) -> LayerWeights:
        config, names = self._config, self._names
        heads, size, inner = config.heads, config.hidden_size, config.intermediate_size
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        return LayerWeights(
            qkv=self._linear(
                [
                    (f"{attention}q_proj", (heads.query_size, size)),
                    (f"{attention}k_proj", (heads.kv_size, size)),
                    (f"{attention}v_proj", (heads.kv_size, size)),
                ],
                config.qkv_bias,
            ),
            output=self._linear(
                [(f"{attention}o_proj", (size, heads.query_size))], config.output_bias
            ),
            gate_up=self._linear(
                [(f"{mlp}gate_proj", (inner, size)), (f"{mlp}up_proj", (inner, size))],
                config.mlp_bias,
            ),
            down=self._linear([(f"{mlp}down_proj", (size, inner))], config.mlp_bias),
            mlp_norm=self._norm(f"{prefix}{names.mlp_norm}", size),
            next_norm=next_norm,
            q_norm=self._norm_if(config.qk_norm, f"{attention}q_norm", heads.head_dim),
            k_norm=self._norm_if(config.qk_norm, f"{attention}k_norm", heads.head_dim),
            post_attention_norm=self._norm_if(
                config.post_norms, f"{prefix}{names.post_attention_norm}", size
            ),
            post_mlp_norm=self._norm_if(config.post_norms, f"{prefix}{names.post_mlp_norm}", size),
        )

    def _linear(self, parts: Sequence[tuple[str, tuple[int, int]]], has_bias: bool) -> Linear:
        """One product of several stored matrices ``(name, shape)``, outputs concatenated."""
        matrices = [
            _to_device(self._weights.matrix(f"{name}.weight", shape), self._device)
            for name, shape in parts
        ]
        bias = None
        if has_bias:
            stored = [self._weights.tensor(f"{name}.bias", shape[:1]) for name, shape in parts]
            bias = torch.cat(stored).to(self._device)
        linear = quantization.prepare_linear(self._kernels, matrices, bias, self._dtype)
        self._size_bytes += linear.size_bytes
        return linear

    def _norm(self, name: str, size: int) -> Tensor:
        weight = self._weights.tensor(f"{name}.weight", (size,))
        if self._config.unit_offset_norms:
            weight = weight + 1.0
        self._size_bytes += weight.numel() * weight.element_size()
        return weight.to(self._device)

    def _norm_if(self, is_present: bool, name: str, size: int) -> Tensor | None:
        return self._norm(name, size) if is_present else None

    def _rope_tables(self, max_model_len: int) -> dict[Rope, Tensor]:
        return {
            rope: cos_sin_table(rope, max_model_len, self._device)
            for rope in set(self._config.ropes)
        }


def _to_device(part: WeightPart, device: torch.device) -> WeightPart:
    if isinstance(part, PackedTensor):
        return PackedTensor(part.blocks.to(device), part.kind, part.num_columns)
    return part.to(device)

"""From a family's weights to a decoder: names, merged products, tables.

Knows how a family's weights are called and which of them are multiplied together; knows nothing of
the file they come from (:class:`octavo.models.interface.WeightSource`) or of a forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo import quantization
from octavo.kernels.interface import Kernels, Linear, PackedTensor, WeightPart
from octavo.layers.rotary import Rope, cos_sin_table
from octavo.models.decoder import Decoder
from octavo.models.decoder_config import DecoderConfig
from octavo.models.decoder_layer import DecoderLayer, LayerWeights
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
        first_norm = self._norm(f"{names.layer(0)}input_layernorm", config.hidden_size)
        tables = self._rope_tables(max_model_len)
        layers = []
        for index in range(config.num_layers):
            next_norm = self._norm(self._name_of_norm_after(index), config.hidden_size)
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

    def _name_of_norm_after(self, index: int) -> str:
        """Of the next layer's first, or the model's last."""
        names = self._names
        is_last = index + 1 == self._config.num_layers
        return f"{names.prefix}norm" if is_last else f"{names.layer(index + 1)}input_layernorm"

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

"""The decoder that all supported families share: embedding, layers, norm, head.

Knows how the parts are wired; knows nothing of configuration files
(:mod:`octavo.models.decoder_config`), of where weights come from
(:mod:`octavo.models.decoder_builder`) or of how an operation is carried out
(:mod:`octavo.kernels.interface`).

Between layers two tensors travel: ``residual``, the running sum, which the kernels add to in
place, and ``hidden``, its normalised form that the next product reads. Each layer therefore
ends with the norm of whatever follows it, so that every addition is fused with a norm::

    residual = embed(ids)                      hidden = norm_0(residual)
    layer i:  hidden = o(attend(rope(qkv(hidden))))      add, norm
              hidden = down(act(gate_up(hidden)))        add, norm_{i+1} (the last: the model's)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.adapters import AdapterStep, Projection
from octavo.kernels.interface import AttentionBatch, Kernels, Linear
from octavo.models.decoder_config import DecoderConfig
from octavo.models.decoder_layer import PROJECTIONS_PER_LAYER, DecoderLayer, LastTokens


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
    def activation_dtype(self) -> torch.dtype:
        return self._dtype

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
    assert len(merged) == PROJECTIONS_PER_LAYER
    return [
        Projection(layer, names, in_features, out_features)
        for layer in range(config.num_layers)
        for names, in_features, out_features in merged
    ]

"""One layer of a decoder: attention, MLP, and the norms around them.

Knows its weights as products and factors, and in which order the kernels are called; knows nothing
of tensors' names or of the layers beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from octavo.kernels.adapters import AdapterStep
from octavo.kernels.interface import AttentionBatch, Kernels, Linear
from octavo.models.decoder_config import Activation, DecoderConfig

PROJECTIONS_PER_LAYER = 4
"""That adapters may change: q/k/v, output, gate/up and down, in this order."""


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
        self._first_projection = PROJECTIONS_PER_LAYER * index
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


def _activation(kernels: Kernels, activation: Activation) -> Callable[[Tensor], Tensor]:
    match activation:
        case Activation.SILU:
            return kernels.silu_mul
        case Activation.GELU_TANH:
            return kernels.gelu_tanh_mul

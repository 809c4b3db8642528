"""The Triton kernels behind the contract of :mod:`octavo.kernels.interface`.

Knows which program serves which call; the programs and their launches are files of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.interface import (
    AttentionBatch,
    GGMLType,
    Linear,
    SamplingBatch,
    WeightPart,
)
from octavo.kernels.triton.activation import gated
from octavo.kernels.triton.decode_attention import decode_attention
from octavo.kernels.triton.launch import Machine
from octavo.kernels.triton.linear import TritonLinear
from octavo.kernels.triton.norm import rms_norm
from octavo.kernels.triton.prefill_attention import prefill_attention
from octavo.kernels.triton.rope_cache import rope_and_cache
from octavo.kernels.triton.sampling import sample


class TritonKernels:
    """A :class:`octavo.kernels.interface.Kernels` for NVIDIA GPUs (or Triton's interpreter).

    Every launch goes to the current stream, and all of them to the same one: splits of one
    result count themselves in scratch that this object owns. Nothing synchronises, and no grid
    depends on device data, so every method can be captured in a CUDA graph.
    """

    name = "triton"
    is_batch_invariant = False
    packed_kinds: frozenset[GGMLType] = frozenset()

    def __init__(self, device: torch.device, machine: Machine | None = None) -> None:
        """``machine`` stands for the device where that is no GPU."""
        self._machine = machine or Machine.of(device)

    @property
    def machine(self) -> Machine:
        """What its launches know of the device."""
        return self._machine

    def prepare_linear(
        self, parts: Sequence[WeightPart], bias: Tensor | None, dtype: torch.dtype
    ) -> Linear:
        return TritonLinear.of(parts, bias, dtype, self._machine)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x, None, weight, eps, self._machine)

    def add_rms_norm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
    ) -> Tensor:
        return rms_norm(x, residual, weight, eps, self._machine)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return gated(gate_up, True, self._machine)

    def gelu_tanh_mul(self, gate_up: Tensor) -> Tensor:
        return gated(gate_up, False, self._machine)

    def rope_and_cache(
        self,
        qkv: Tensor,
        cos_sin: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: AttentionBatch,
        num_heads: int,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> Tensor:
        return rope_and_cache(
            qkv,
            cos_sin,
            key_cache,
            value_cache,
            batch,
            num_heads,
            q_norm,
            k_norm,
            eps,
            self._machine,
        )

    def paged_attention(
        self,
        q: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int | None,
        qkv: Tensor | None = None,
    ) -> Tensor:
        """Tokens past the last sequence (padding) get no defined output."""
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if batch.num_decodes > 0:
            decode_attention(q, key_cache, value_cache, out, batch, scale, window, self._machine)
        if batch.context_lens.shape[0] > batch.num_decodes:
            prefill_attention(
                q, key_cache, value_cache, out, batch, scale, window, self._machine, qkv=qkv
            )
        return out

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return sample(logits, batch, self._machine)

"""The CPU kernels with bits that do not depend on the batch; see
:func:`octavo.kernels.select.select_kernels` for what that means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from octavo.kernels.cpu.backend import CpuKernels
from octavo.kernels.fixed_rows import FixedRowsLinear
from octavo.kernels.interface import AttentionBatch, Linear, WeightPart


class InvariantCpuKernels(CpuKernels):
    """Products of fixed numbers of rows, and one attention for decodes and prompts."""

    is_batch_invariant = True

    def prepare_linear(
        self, parts: Sequence[WeightPart], bias: Tensor | None, dtype: torch.dtype
    ) -> Linear:
        return FixedRowsLinear(super().prepare_linear(parts, bias, dtype))

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
        batch = replace(batch, num_decodes=0, shared=None)
        return super().paged_attention(q, key_cache, value_cache, batch, scale, window)

"""The Triton kernels with bits that do not depend on the batch; see
:func:`octavo.kernels.select.select_kernels` for what that means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from octavo.kernels.interface import AttentionBatch, Linear, WeightPart
from octavo.kernels.reference import DenseLinear
from octavo.kernels.triton.backend import TritonKernels
from octavo.kernels.triton.fixed_product import fixed_product


class FixedOrderLinear(DenseLinear):
    """A dense matrix whose products sum in one order."""

    def __call__(self, x: Tensor) -> Tensor:
        return fixed_product(x.contiguous(), self.weight, self.bias)


class InvariantTritonKernels(TritonKernels):
    """Products that sum in one order, and one attention for decodes and prompts.

    Prefill attention visits a query's keys in tiles that begin at multiples of the tile's size,
    whatever chunk the query came in; decode attention cuts a sequence by how full the device is.
    """

    is_batch_invariant = True

    def prepare_linear(
        self, parts: Sequence[WeightPart], bias: Tensor | None, dtype: torch.dtype
    ) -> Linear:
        return FixedOrderLinear.merge(parts, bias, dtype)

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
        # From pages alone: tiles of a chunk's own keys begin where the chunk does.
        batch = replace(batch, num_decodes=0, shared=None)
        return super().paged_attention(q, key_cache, value_cache, batch, scale, window)

"""LoRA beside the CPU kernels: one C call adds what every token's adapter adds to a product.

Knows the layout of that call (``csrc/python_face.c``); what it computes is
:mod:`octavo.kernels.adapters`'. Bits do not depend on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.adapters import (
    NO_ADAPTER,
    Adapters,
    AdapterStack,
    AdapterStep,
    AdapterUse,
    padded_rank,
)
from octavo.kernels.cpu.backend import CpuKernels
from octavo.kernels.interface import Linear

_MAX_RANK = 256
"""That the C has room for."""


class CpuAdapters(Adapters):
    """:class:`octavo.kernels.adapters.Adapters` in C, for a stack in float32."""

    def __init__(self, stack: AdapterStack, kernels: CpuKernels) -> None:
        assert padded_rank(stack.max_rank) <= _MAX_RANK
        assert stack.b.dtype is torch.float32
        self.kernels = kernels
        self._b_and_table = (stack.b.data_ptr(), stack.b.stride(0), stack.table.data_ptr())
        self._a = [_described(a) for a in stack.a]
        self._out_features = [torch.tensor(p.out_features) for p in stack.projections]
        self._stack = stack  # which keeps the memory that C reads

    def step(self, slots: Tensor, use: AdapterUse = AdapterUse.MANY) -> AdapterStep:
        slots = slots.contiguous()
        assert slots.dtype is torch.int32
        num_without = int((slots == NO_ADAPTER).sum())
        return _CpuStep(self, slots, torch.argsort(slots, stable=True)[num_without:])

    def add(self, y: Tensor, index: int, x: Tensor, slots: Tensor, order: Tensor) -> None:
        """To ``y: [T, sum(out_features)]`` of a projection, for the tokens in ``order``."""
        assert x.dtype is y.dtype is torch.float32
        assert x.stride(1) == y.stride(1) == 1
        out_features = self._out_features[index]
        self.kernels.library.adapters(
            x.data_ptr(),
            x.stride(0),
            *self._a[index],
            *self._b_and_table,
            index,
            len(self._a),
            order.data_ptr(),
            len(order),
            slots.data_ptr(),
            out_features.data_ptr(),
            len(out_features),
            y.data_ptr(),
            y.stride(0),
            torch.get_num_threads(),
        )


def _described(a: Tensor) -> tuple[int, int, int, int]:
    """Input size, address, and strides of slots and parts."""
    assert a.is_contiguous()
    return a.shape[-1], a.data_ptr(), a.stride(0), a.stride(1)


@dataclass(frozen=True, slots=True)
class _CpuStep:
    adapters: CpuAdapters
    slots: Tensor
    order: Tensor
    """Tokens with an adapter, by adapter."""

    def of(self, tokens: Tensor) -> AdapterStep:
        return self.adapters.step(self.slots[tokens])

    def project(self, index: int, linear: Linear, x: Tensor) -> Tensor:
        y = linear(x)
        if len(self.order):
            self.adapters.add(y, index, x, self.slots, self.order)
        return y

    def project_gated(self, index: int, linear: Linear, x: Tensor, is_silu: bool) -> Tensor:
        kernels, gate_up = self.adapters.kernels, self.project(index, linear, x)
        return kernels.silu_mul(gate_up) if is_silu else kernels.gelu_tanh_mul(gate_up)

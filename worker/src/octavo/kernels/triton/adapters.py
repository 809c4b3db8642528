"""LoRA for every token of a step at once: shrink (A x), then expand (B of that) into the product.

Tokens are sorted by adapter on the device (:mod:`.adapter_tiles`), so neither half is more than
small matrix products, and no launch depends on device data: the same launches serve captured
decode steps and eager prefills. All parts of a merged product (q, k, v; gate, up) share one launch
of each kind.

A of all slots stands below the weights (:meth:`.linear.TritonLinear.append_rows`), and the product
itself shrinks as long as that costs less than a launch which it would wait for: it then
multiplies tokens with adapters that are not theirs, too. Else a launch ahead of the product shrinks
(:mod:`.adapter_shrink`), each tile of tokens with its own adapter. What that gives is expanded into
the product in place, gate and up by their activation, which reads them anyway
(:mod:`.adapter_expand`). Every launch is on its way while its predecessor ends (:mod:`.overlap`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from octavo.kernels.adapters import AdapterStack, AdapterStep, AdapterUse, padded_rank
from octavo.kernels.interface import ChosenGroups, Linear
from octavo.kernels.triton.adapter_expand import MAX_GATED_RANK, expand, gated_expand
from octavo.kernels.triton.adapter_expand_by_token import MAX_RANK_BY_TOKEN, expand_by_token
from octavo.kernels.triton.adapter_operands import Operands, Shrunk
from octavo.kernels.triton.adapter_shrink import shrink
from octavo.kernels.triton.adapter_tiles import Tiles, make_tiles
from octavo.kernels.triton.backend import TritonKernels
from octavo.kernels.triton.linear import TritonLinear

_MEMORY_BOUND_TOKENS = 256
"""Up to so many a product takes as long as reading its rows."""
_MAX_SHARE = 1 / 16
"""Of a product's rows, that more tokens may be multiplied with for nothing."""
_MAX_IDLE_ROWS = 512
"""Of each matrix A, that may be read for nothing: it takes no longer than the launch ahead."""
_FEW = 8
"""Adapters at most in a step that uses few of many slots."""


class TritonAdapters:
    """:class:`octavo.kernels.adapters.Adapters` for NVIDIA GPUs (or Triton's interpreter)."""

    def __init__(self, stack: AdapterStack, kernels: TritonKernels) -> None:
        self._stack = stack
        self._kernels = kernels

    @property
    def uses(self) -> Sequence[AdapterUse]:
        return list(dict.fromkeys([self.use_of(1), AdapterUse.MANY]))

    def use_of(self, num_slots: int) -> AdapterUse:
        if num_slots == 0:
            return AdapterUse.NONE
        return AdapterUse.FEW if num_slots <= _most_few(self._stack) else AdapterUse.MANY

    def step(self, slots: Tensor, use: AdapterUse = AdapterUse.MANY) -> AdapterStep:
        num_slots = self._stack.num_slots
        most_used = num_slots if use is AdapterUse.MANY else _most_few(self._stack)
        # Where bits must not depend on the batch sums have one order.
        tiles = make_tiles(slots, num_slots, most_used, self._kernels.is_batch_invariant)
        return TritonStep(self._stack, self._kernels, slots, tiles)


def _most_few(stack: AdapterStack) -> int:
    """Adapters at most in a step that uses few; 0 where all are not much more."""
    if stack.num_slots * padded_rank(stack.max_rank) < _MAX_IDLE_ROWS:
        return 0
    return min(_FEW, stack.num_slots // 4)


@dataclass(frozen=True, slots=True)
class TritonStep:
    """Launches."""

    stack: AdapterStack
    kernels: TritonKernels
    slots: Tensor
    tiles: Tiles

    def of(self, tokens: Tensor) -> AdapterStep:
        slots, tiles = self.slots[tokens], self.tiles
        own = make_tiles(slots, self.stack.num_slots, tiles.most_used, tiles.is_uniform)
        return replace(self, slots=slots, tiles=own)

    def project(self, index: int, linear: Linear, x: Tensor) -> Tensor:
        operands = self._operands(index, x)
        y, shrunk = self._product(linear, x, operands)
        (expand_by_token if self._is_by_token(operands) else expand)(y, shrunk, operands)
        return y

    def project_gated(self, index: int, linear: Linear, x: Tensor, is_silu: bool) -> Tensor:
        operands = self._operands(index, x)
        if operands.storage_rank > MAX_GATED_RANK:
            activate = self.kernels.silu_mul if is_silu else self.kernels.gelu_tanh_mul
            return activate(self.project(index, linear, x))
        y, shrunk = self._product(linear, x, operands)
        return gated_expand(y, shrunk, operands, is_silu)

    def _product(self, linear: Linear, x: Tensor, operands: Operands) -> tuple[Tensor, Shrunk]:
        groups = ChosenGroups(self.slots, self.tiles.counts, self.tiles.most_used)
        if isinstance(linear, TritonLinear) and self._shrinks(linear, x.shape[0], groups):
            whole = linear.with_rows_below(x, groups)
            out_features = linear.out_features
            return whole[:, :out_features], Shrunk(whole[:, out_features:], num_splits=0)
        shrunk = shrink(x, operands)
        return linear(x), shrunk

    def _shrinks(self, linear: TritonLinear, num_tokens: int, groups: ChosenGroups) -> bool:
        """Whether the product is to be computed with the rows below it."""
        num_rows = linear.num_rows_below
        if not num_rows:
            return False
        if linear.serves_below(num_tokens, groups):
            return True
        if num_rows <= _MAX_SHARE * linear.out_features:
            return True
        num_idle = self.stack.num_slots - groups.most
        are_few_idle = num_idle * padded_rank(self.stack.max_rank) <= _MAX_IDLE_ROWS
        return num_tokens <= _MEMORY_BOUND_TOKENS and are_few_idle

    def _is_by_token(self, operands: Operands) -> bool:
        """Whether most adapters have one token, and few more than two."""
        if self.tiles.is_uniform or operands.storage_rank > MAX_RANK_BY_TOKEN:
            return False
        return operands.num_tokens <= self.tiles.most_used

    def _operands(self, index: int, x: Tensor) -> Operands:
        options = self.kernels.machine.launch_options
        return Operands(self.stack, index, self.tiles, x.shape[0], options)

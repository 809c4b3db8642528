"""LoRA for every token of a step at once: shrink (A x), then expand (B of that) into the product.

Tokens are sorted by adapter on the device and cut into tiles of one adapter each
(:mod:`.adapter_tiles`), so each tile is a small matrix product and no launch depends on device
data: the same launches serve captured decode steps and eager prefills. All parts of a merged
product (q, k, v; gate, up) share one launch of each kind.

Products of few tokens wait for memory, and their programs leave room beside them: in a captured
decode step both halves run on a branch of the graph meanwhile, and what they give is added by the
program that reads the product next. Larger products fill the device. There the two run before and
after, each on its way while its predecessor ends (:mod:`.overlap`), and the expand adds in place;
the activation adds to gate and up, which it reads anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.kernels.adapters import AdapterStack, AdapterStep
from octavo.kernels.interface import Linear
from octavo.kernels.triton.adapter_expand import (
    MAX_GATED_RANK,
    expand,
    expanded,
    gated_expand,
)
from octavo.kernels.triton.adapter_operands import Operands, Shrunk
from octavo.kernels.triton.adapter_shrink import shrink
from octavo.kernels.triton.adapter_tiles import Tiles, make_tiles
from octavo.kernels.triton.backend import TritonKernels
from octavo.kernels.triton.linear import TritonLinear

_MAX_TOKENS_BESIDE = 64
"""Of a product that leaves room (:meth:`octavo.kernels.triton.linear.TritonLinear.serves`)."""
_FIRST = -1
EXP = {"beside": False, "rows": True}
"""Priority of the branch: its programs are short, and what they are needed for is not."""


class TritonAdapters:
    """:class:`octavo.kernels.adapters.Adapters` for NVIDIA GPUs (or Triton's interpreter)."""

    def __init__(self, stack: AdapterStack, kernels: TritonKernels) -> None:
        self._stack = stack
        self._kernels = kernels
        self._branch: torch.cuda.Stream | None = None
        if stack.b.is_cuda:
            self._branch = torch.cuda.Stream(  # type: ignore[no-untyped-call]
                stack.b.device, priority=_FIRST
            )

    def step(self, slots: Tensor, is_decode: bool = False) -> AdapterStep:
        is_beside = (
            is_decode
            and slots.shape[0] <= _MAX_TOKENS_BESIDE
            and not self._kernels.is_batch_invariant
        )
        is_captured = slots.is_cuda and torch.cuda.is_current_stream_capturing()
        return TritonStep(
            self._stack,
            self._kernels,
            slots,
            _tiles(slots, self._stack, self._kernels),
            self._branch if is_captured else None,
            is_beside,
        )


def _tiles(slots: Tensor, stack: AdapterStack, kernels: TritonKernels) -> Tiles:
    """Where bits must not depend on the batch sums have one order."""
    return make_tiles(slots, stack.num_slots, kernels.is_batch_invariant)


@dataclass(frozen=True, slots=True)
class TritonStep:
    """Launches. ``branch``: where those beside a product run; None: before it."""

    stack: AdapterStack
    kernels: TritonKernels
    slots: Tensor
    tiles: Tiles
    branch: torch.cuda.Stream | None
    is_beside: bool
    """Whether all is done beside the product, and what is to be added left to whoever reads it."""

    def of(self, tokens: Tensor) -> AdapterStep:
        slots = self.slots[tokens]
        tiles = _tiles(slots, self.stack, self.kernels)
        return replace(self, slots=slots, tiles=tiles, is_beside=False)

    def project(self, index: int, linear: Linear, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.is_beside and EXP["beside"]:
            return self._beside(index, linear, x)
        operands = self._operands(index, x, self.kernels.machine.launch_options)
        y, shrunk = self._product(linear, x, operands)
        expand(y, shrunk, operands)
        return y, None

    def project_gated(self, index: int, linear: Linear, x: Tensor, is_silu: bool) -> Tensor:
        operands = self._operands(index, x, self.kernels.machine.launch_options)
        if (self.is_beside and EXP["beside"]) or operands.storage_rank > MAX_GATED_RANK:
            activate = self.kernels.silu_mul if is_silu else self.kernels.gelu_tanh_mul
            return activate(*self.project(index, linear, x))
        y, shrunk = self._product(linear, x, operands)
        return gated_expand(y, shrunk, operands, is_silu)

    def _product(self, linear: Linear, x: Tensor, operands: Operands) -> tuple[Tensor, Shrunk]:
        if (
            EXP["rows"]
            and isinstance(linear, TritonLinear)
            and self._multiplies_rows(linear, x.shape[0])
        ):
            whole = linear.with_rows_below(x)
            out_features = linear.out_features
            return whole[:, :out_features], Shrunk(whole[:, out_features:], 0)
        shrunk = shrink(x, operands)
        return linear(x), shrunk

    def _multiplies_rows(self, linear: TritonLinear, num_tokens: int) -> bool:
        rows = linear.num_rows_below
        if not rows:
            return False
        if linear.serves(num_tokens, linear.out_features + rows):
            return True
        return num_tokens <= 256 or 16 * rows <= linear.out_features

    def _beside(self, index: int, linear: Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        """The product, and what is to be added to it."""
        operands = self._operands(index, x, self.kernels.machine.options_off_chain)
        if self.branch is None:
            added = expanded(shrink(x, operands), operands, x.dtype)
            return linear(x), added
        main = torch.cuda.current_stream(x.device)
        self.branch.wait_stream(main)
        with torch.cuda.stream(self.branch):
            added = expanded(shrink(x, operands), operands, x.dtype)
        y = linear(x)
        main.wait_stream(self.branch)
        return y, added

    def _operands(self, index: int, x: Tensor, options: Mapping[str, bool]) -> Operands:
        return Operands(self.stack, index, self.tiles, x.shape[0], options)

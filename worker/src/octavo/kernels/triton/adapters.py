"""LoRA for every token of a step at once: shrink (A x), then expand (B of that) into the product.

Tokens are sorted by adapter on the device and cut into tiles of one adapter each
(:mod:`.adapter_tiles`), so each tile is a small matrix product and no launch depends on device
data: the same launches serve captured decode steps and eager prefills. All parts of a merged
product (q, k, v; gate, up) share one launch of each kind.

In a captured step the shrink of a product runs beside the product itself, on a branch of the
graph: it needs the same input and nothing else, and a decode step's products wait for memory. In
decode steps the expand runs there too, and what it gives is added by the program that reads the
product next, so that nothing of an adapter is waited for but its bytes. Of prompts that sum would
take too much memory: there the expand adds in place, and the activation to gate and up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.kernels.adapters import AdapterStack, AdapterStep
from octavo.kernels.interface import Kernels, Linear
from octavo.kernels.triton.adapter_expand import expand, expanded, gated_expand
from octavo.kernels.triton.adapter_operands import Operands
from octavo.kernels.triton.adapter_shrink import shrink
from octavo.kernels.triton.adapter_tiles import MIN_TILE, Tiles, make_tiles
from octavo.kernels.triton.launch import MAX_ARRIVALS

_FIRST = -1
"""Priority of the branch: its programs are short, and what they are needed for is not."""


class TritonAdapters:
    """:class:`octavo.kernels.adapters.Adapters` for NVIDIA GPUs (or Triton's interpreter)."""

    def __init__(self, stack: AdapterStack, kernels: Kernels) -> None:
        self._stack = stack
        self._kernels = kernels
        self._arrivals = torch.zeros(MAX_ARRIVALS, dtype=torch.int32, device=stack.storage.device)
        self._branch: torch.cuda.Stream | None = None
        if stack.storage.is_cuda:
            self._branch = torch.cuda.Stream(  # type: ignore[no-untyped-call]
                stack.storage.device, priority=_FIRST
            )

    def step(self, slots: Tensor, is_decode: bool = False) -> AdapterStep:
        is_captured = slots.is_cuda and torch.cuda.is_current_stream_capturing()
        return TritonStep(
            self._stack,
            self._kernels,
            slots,
            _tiles(slots, self._stack, self._kernels),
            self._branch if is_captured else None,
            self._arrivals,
            is_apart=is_decode and not self._kernels.is_batch_invariant,
        )


def _tiles(slots: Tensor, stack: AdapterStack, kernels: Kernels) -> Tiles:
    """Where bits must not depend on the batch all tiles have one size, and so one order of sums."""
    return make_tiles(slots, stack.num_slots, MIN_TILE if kernels.is_batch_invariant else None)


@dataclass(frozen=True, slots=True)
class TritonStep:
    """Launches. ``branch``: where they run beside the products; None: before them."""

    stack: AdapterStack
    kernels: Kernels
    slots: Tensor
    tiles: Tiles
    branch: torch.cuda.Stream | None
    arrivals: Tensor
    """Of shrinks, which run beside what counts in those of :class:`.launch.Machine`."""
    is_apart: bool
    """Whether what is to be added is left to whoever reads the product."""

    def of(self, tokens: Tensor) -> AdapterStep:
        slots = self.slots[tokens]
        return replace(self, slots=slots, tiles=_tiles(slots, self.stack, self.kernels))

    def project(self, index: int, linear: Linear, x: Tensor) -> tuple[Tensor, Tensor | None]:
        operands = Operands(self.stack, index, self.tiles, x.shape[0])
        y, side = self._both(operands, linear, x)
        if self.is_apart:
            return y, side
        expand(y, side, operands)
        return y, None

    def project_gated(self, index: int, linear: Linear, x: Tensor, is_silu: bool) -> Tensor:
        operands = Operands(self.stack, index, self.tiles, x.shape[0])
        gate_up, side = self._both(operands, linear, x)
        if not self.is_apart:
            return gated_expand(gate_up, side, operands, is_silu)
        activate = self.kernels.silu_mul if is_silu else self.kernels.gelu_tanh_mul
        return activate(gate_up, side)

    def _both(self, operands: Operands, linear: Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        """The product, and what was shrunk, or expanded where that is left apart."""
        if self.branch is None:
            side = self._side(operands, x)
            return linear(x), side
        main = torch.cuda.current_stream(x.device)
        self.branch.wait_stream(main)
        with torch.cuda.stream(self.branch):
            side = self._side(operands, x)
        y = linear(x)
        main.wait_stream(self.branch)
        return y, side

    def _side(self, operands: Operands, x: Tensor) -> Tensor:
        shrunk = shrink(x, operands, self.arrivals)
        return expanded(shrunk, operands) if self.is_apart else shrunk

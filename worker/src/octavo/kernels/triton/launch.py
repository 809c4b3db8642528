"""What launch functions must know of the machine: interpreter or GPU, and how wide it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from triton import knobs

INTERPRETED: bool = bool(knobs.runtime.interpret)
"""Whether Triton's interpreter runs the programs of this process.

Its ``tl.dot`` multiplies the raw bits of bf16 operands (seen in triton 3.7.1 to 3.9.0), so
programs widen operands to float32 first when this is set. Delete with the first release that
multiplies bf16 right.
"""

MAX_ARRIVALS = 1 << 16
_INTERPRETED_MULTIPROCESSORS = 2


@dataclass(frozen=True, slots=True)
class Machine:
    """One device, and the scratch its programs share.

    Programs that split one result over several workers count those that are done in
    ``arrivals: [MAX_ARRIVALS], int32``; the last one combines, and sets its counter back to
    zero. All launches must therefore be ordered on one stream.
    """

    device: torch.device
    num_multiprocessors: int
    arrivals: Tensor
    unused: Tensor
    """float32, for pointers that a launch must pass and will not follow."""

    has_warpgroup_products: bool
    """Whether four warps multiply together from shared memory (compute capability 9 and 10).

    Such cards also have twice the shared memory of the others, so tiles are larger.
    """
    launch_options: Mapping[str, bool]
    """Passed to every launch: whether its program overlaps its predecessor
    (:mod:`octavo.kernels.triton.overlap`)."""

    @classmethod
    def of(
        cls,
        device: torch.device,
        num_multiprocessors: int | None = None,
        has_warpgroup_products: bool = True,
        can_overlap: bool = False,
    ) -> Machine:
        """Read what the device is; where it is no GPU, it is what the other arguments say."""
        num_multiprocessors = num_multiprocessors or _INTERPRETED_MULTIPROCESSORS
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            num_multiprocessors = properties.multi_processor_count
            has_warpgroup_products = properties.major in (9, 10)
            can_overlap = properties.major >= 9
        return cls(
            device=device,
            num_multiprocessors=num_multiprocessors,
            arrivals=torch.zeros(MAX_ARRIVALS, dtype=torch.int32, device=device),
            unused=torch.zeros(16, dtype=torch.float32, device=device),
            has_warpgroup_products=has_warpgroup_products,
            launch_options=_launch_options(can_overlap),
        )

    def options_with(self, max_registers: int | None) -> Mapping[str, object]:
        """:attr:`launch_options` and, on a GPU, a limit to a thread's registers."""
        if INTERPRETED or max_registers is None:
            return self.launch_options
        return {**self.launch_options, "maxnreg": max_registers}


def _launch_options(can_overlap: bool) -> Mapping[str, bool]:
    # The interpreter does not know launch_pdl.
    return {"OVERLAP": True, "launch_pdl": True} if can_overlap else {"OVERLAP": False}


def before_each_compilation(tell: Callable[[], object]) -> None:
    """Call ``tell`` when a kernel is about to be compiled, or loaded from Triton's cache."""

    def hook(**_: object) -> bool:
        tell()
        return False  # True would mean: do not compile

    knobs.runtime.jit_cache_hook = hook


def ceil_div(value: int, by: int) -> int:
    """``value / by``, rounded up. Triton's own, made for programs, takes the host microseconds."""
    return -(-value // by)


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is at least ``value`` (and at least 1)."""
    return 1 << max(value - 1, 0).bit_length()

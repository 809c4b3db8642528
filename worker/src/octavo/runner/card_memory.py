"""What one engine uses of a CUDA card, read from its own allocator.

Sizes follow from this process's allocations and the card's total alone: what a neighbour does
at the moment must not change them. What others hold is read for messages, and to notice before
serving that a share which was promised is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from octavo.errors import OutOfMemoryError

_GIB = 1 << 30


class CardMemory(Protocol):
    """One card's memory, in bytes."""

    total_bytes: int

    def own_bytes(self) -> int:
        """Held by this engine's allocator, unused remainders returned before."""

    def free_bytes(self) -> int:
        """Held by nobody, neighbours included."""

    def peak_of(self, run: Callable[[], None]) -> int:
        """Run something to its end on the device; returns the most that was held meanwhile."""


class CudaMemory:
    """A :class:`CardMemory` over torch's caching allocator.

    Counts what the allocator holds, not what tensors fill: that is what others cannot have.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.total_bytes: int = torch.cuda.get_device_properties(device).total_memory

    def own_bytes(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self._device)

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def peak_of(self, run: Callable[[], None]) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        run()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_reserved(self._device)


@contextmanager
def explained_shortage(card: CardMemory | None, what: str, remedy: str) -> Iterator[None]:
    """Turn the allocator's complaint into one sentence: what did not fit, into what, what to do.

    ``card``: None where memory is the machine's.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if card is None:
            raise
        free, total = card.free_bytes(), card.total_bytes
        own = card.own_bytes()
        others = total - free - own
        raise OutOfMemoryError(
            f"There is no room for {what}: of the card's {total / _GIB:.2f} GiB this engine "
            f"holds {own / _GIB:.2f} already, other processes and CUDA {others / _GIB:.2f}, and "
            f"{free / _GIB:.2f} are free: {remedy}, or stop what else uses the card."
        ) from error

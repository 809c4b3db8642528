"""Host memory that the device copies from by itself (page-locked, "pinned").

Exactly what is asked for: torch's own takes the next power of two, which is up to twice as much.
Its pages are mapped by all of torch's threads before they are locked, not one by one by the driver
while it locks them. It is shared memory, of which a fork copies no page that the device may be
reading.

Source: CUDA Runtime API, cudaHostRegister.
"""

from __future__ import annotations

import mmap
import weakref

import torch
from torch import Tensor

from octavo.errors import OutOfMemoryError


class LockedMemory:
    """Locked until nobody refers to it any more; nothing may be under way from it by then."""

    def __init__(self, num_bytes: int) -> None:
        """Raises OutOfMemoryError."""
        try:
            self.bytes: Tensor = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)
            self.bytes.zero_()
            _lock(self.bytes)
        except (OSError, RuntimeError) as error:
            raise OutOfMemoryError(
                f"{num_bytes / 2**30:.2f} GiB of host memory for LoRA adapters cannot be locked "
                f"({error}); lower --max-cpu-loras or --max-lora-rank."
            ) from error
        weakref.finalize(self, _unlock, self.bytes).atexit = False


def _lock(memory: Tensor) -> None:
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(cudart.cudaHostRegister(memory.data_ptr(), memory.numel(), 0))


def _unlock(memory: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())  # type: ignore[no-untyped-call]

"""Memory that the device reads by itself, and no more of it than was asked for."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from octavo.lora.locked_memory import LockedMemory

NUM_BYTES = 300 << 20
"""Far from the next power of two."""


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_it_is_locked_as_large_as_asked_for_and_as_long_as_it_is_held() -> None:
    small = LockedMemory(1 << 20)  # what CUDA itself takes at first
    before = resident_bytes()
    memory = LockedMemory(NUM_BYTES)
    taken = resident_bytes() - before
    assert NUM_BYTES <= taken < 1.1 * NUM_BYTES
    assert small.bytes.is_pinned()
    numbers = memory.bytes.view(torch.float32)
    assert numbers.is_pinned()
    numbers.copy_(torch.arange(len(numbers)))
    there = numbers.to("cuda", non_blocking=True)
    assert torch.equal(there, torch.arange(len(numbers), device="cuda").float())
    del memory
    assert not numbers.is_pinned()
    assert numbers[7] == 7

"""Small host values to the device, without waiting for it.

A copy from ordinary memory would wait for all work queued on a CUDA device; one from pinned memory
is queued behind it. The memory is taken afresh each time from torch's allocator, which gives it to
nobody else before the copy is done.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor

_Numbers = Sequence[int] | Sequence[float]
_TYPE_CODES = {torch.int32: "i", torch.int64: "q", torch.float32: "f"}

# Measured on the CPU build.
_FEW_RUNS = 4
"""So many transfers take the host about as long as one and the kernels that scatter its numbers."""
_LONG_RUN = 1000
"""To scatter so many numbers more takes the host about as long as one transfer more."""


def upload(
    values: _Numbers | Sequence[_Numbers], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A tensor of these values on the device; lists of equal length become its rows."""
    if values and isinstance(values[0], Sequence):
        rows = cast("Sequence[_Numbers]", values)
        flat = _staged(list(chain.from_iterable(rows)), dtype, device).view(len(rows), -1)
    else:
        flat = _staged(cast("_Numbers", values), dtype, device)
    return flat.to(device, non_blocking=True)


def write(targets: Sequence[Tensor], values: Sequence[int]) -> None:
    """Fill ``targets``, contiguous parts of tensors of one dtype on one device, in turn: a transfer
    each from the same memory, and no kernel."""
    if not targets:
        return
    staged = _staged(values, targets[0].dtype, targets[0].device)
    for target, part in zip(targets, staged.split_with_sizes([*map(len, targets)]), strict=True):
        target.copy_(part, non_blocking=True)


def write_runs(
    memory: Tensor, begins: Sequence[int], sizes: Sequence[int], values: Sequence[int]
) -> None:
    """Fill runs of ``memory``, ``[n], int32``, contiguous, in turn: each from its begin on, so many
    numbers. No two may overlap.

    A transfer takes the host microseconds however short it is. So a few runs, or long ones, go
    straight to where they stay, and many short ones with one transfer, to be scattered on the
    device.
    """
    if len(sizes) <= _FEW_RUNS + len(values) // _LONG_RUN:
        write([memory[at : at + size] for at, size in zip(begins, sizes, strict=True)], values)
    else:
        _scatter(memory, begins, sizes, values)


def _scatter(
    memory: Tensor, begins: Sequence[int], sizes: Sequence[int], values: Sequence[int]
) -> None:
    """Places go as differences, which are 1 but where a run begins: the host has work for each run,
    not for each number, and the device adds them up."""
    num_values = len(values)
    words = array("q", [1]) * num_values
    index, place = 0, 1  # of the next number, and where it would go if no run began with it
    for begin, size in zip(begins, sizes, strict=True):
        if size:
            words[index] += begin - place
            index, place = index + size, begin + size
    packed = array("i", values)
    if num_values % 2:
        packed.append(0)  # two of them to a word
    words.frombytes(packed.tobytes())
    uploaded = upload(words, torch.int64, memory.device)
    places = uploaded[:num_values].cumsum(0)
    memory.scatter_(0, places, uploaded[num_values:].view(torch.int32)[:num_values])


def _staged(values: _Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not values:
        return torch.empty(0, dtype=dtype)
    # An array takes a list in a tenth of the time that torch.tensor does.
    tensor = torch.frombuffer(array(_TYPE_CODES[dtype], values), dtype=dtype)
    return tensor.pin_memory() if device.type == "cuda" else tensor

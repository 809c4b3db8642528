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


def _staged(values: _Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not values:
        return torch.empty(0, dtype=dtype)
    # An array takes a list in a tenth of the time that torch.tensor does.
    tensor = torch.frombuffer(array(_TYPE_CODES[dtype], values), dtype=dtype)
    return tensor.pin_memory() if device.type == "cuda" else tensor

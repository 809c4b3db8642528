"""Small host values to the device, without waiting for it.

A copy from ordinary memory would wait for all work queued on a CUDA device; one from pinned memory
is queued behind it. The memory is taken afresh each time from torch's allocator, which gives it to
nobody else before the copy is done.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Values = Sequence[int] | Sequence[float] | Sequence[Sequence[int]] | Sequence[Sequence[float]]


def upload(values: Values, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these values on the device."""
    return _staged(values, dtype, device).to(device, non_blocking=True)


def write(target: Tensor, values: Values) -> None:
    """Copy these values into ``target``, a contiguous part of a tensor on the device: one transfer
    and no kernel."""
    target.copy_(_staged(values, target.dtype, target.device), non_blocking=True)


def _staged(values: Values, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")

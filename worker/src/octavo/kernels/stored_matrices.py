"""Matrices among a file's bytes, and how they come into other memory: all of them in one call.

That is one in C where the CPU kernels are built (``kernels/cpu/csrc/copies.c``), and plain torch
elsewhere. A thread that makes an adapter ready with a call or two for each of hundreds of matrices
gives the interpreter away and takes it again each time, and so keeps it from the engine's loop.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.cpu.library import KernelFunction, LibraryMissingError, load_library
from octavo.kernels.cpu.linear import DENSE_KINDS


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Numbers among a file's bytes, row by row, as little-endian as the processor."""

    offset: int
    """In bytes."""
    dtype: torch.dtype
    """float32, float16 or bfloat16."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MatrixCopy:
    """Where a matrix goes."""

    source: StoredTensor
    """Of two dimensions."""
    scaling: float
    offset: int
    """Of its first number in the target."""
    stride: int
    """Of the target: from row to row."""


class MatrixCopies:
    """All that is copied of a file, described once for any number of files that look alike."""

    def __init__(self, copies: Sequence[MatrixCopy]) -> None:
        self.copies = tuple(copies)
        places = [
            (
                copy.source.offset,
                DENSE_KINDS[copy.source.dtype],
                *copy.source.shape,
                copy.offset,
                copy.stride,
            )
            for copy in copies
        ]
        self._places = torch.tensor(places, dtype=torch.int64)
        self._scalings = torch.tensor([copy.scaling for copy in copies], dtype=torch.float32)

    def fill(self, target: Tensor, data: mmap.mmap) -> bool:
        """Fill what is named of ``target: [N]``, float32, float16 or bfloat16, on the host.

        Each number is multiplied by its matrix's scaling in float32 and rounded once to the
        target's dtype. Returns whether all of them are finite there.
        """
        try:
            function = load_library().copy_matrices
        except LibraryMissingError:
            return self.fill_by_torch(target, data)
        return self.fill_in_c(target, data, function)

    def fill_in_c(self, target: Tensor, data: mmap.mmap, function: KernelFunction) -> bool:
        """As :meth:`fill`; ``function``: of one of the compiled variants."""
        all_finite = torch.ones(1, dtype=torch.int64)
        function(
            torch.frombuffer(data, dtype=torch.uint8).data_ptr(),
            self._places.data_ptr(),
            self._scalings.data_ptr(),
            len(self.copies),
            target.data_ptr(),
            DENSE_KINDS[target.dtype],
            all_finite.data_ptr(),
        )
        return bool(all_finite)

    def fill_by_torch(self, target: Tensor, data: mmap.mmap) -> bool:
        """As :meth:`fill`: the truth that C is compared with."""
        all_finite = True
        for copy in self.copies:
            rows = target.as_strided(copy.source.shape, (copy.stride, 1), copy.offset)
            rows.copy_(_tensor(data, copy.source).float() * copy.scaling)
            all_finite = all_finite and bool(rows.isfinite().all())
        return all_finite


def _tensor(data: mmap.mmap, stored: StoredTensor) -> Tensor:
    num_bytes = math.prod(stored.shape) * stored.dtype.itemsize
    numbers = torch.frombuffer(data, dtype=torch.uint8, count=num_bytes, offset=stored.offset)
    if stored.offset % stored.dtype.itemsize:  # files may have it so
        numbers = numbers.clone()
    return numbers.view(stored.dtype).view(stored.shape)

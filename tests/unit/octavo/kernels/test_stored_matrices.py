"""Matrices of a file in other memory: C and torch give the same bits."""

from __future__ import annotations

import mmap

import pytest
import torch
from torch import Tensor

from octavo.kernels.cpu.library import load_library, runnable_variants
from octavo.kernels.stored_matrices import (
    MatrixCopies,
    MatrixCopy,
    StoredTensor,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1), (3, 5), (16, 67), (7, 16), (64, 1), (1, 1000)]


def stored(matrices: list[Tensor], gap: int) -> tuple[mmap.mmap, list[StoredTensor]]:
    """A file of them, each ``gap`` bytes behind the one before."""
    contents, places = bytearray(), []
    for matrix in matrices:
        contents += bytes(gap)
        places.append(StoredTensor(len(contents), matrix.dtype, tuple(matrix.shape)))
        contents += matrix.contiguous().view(torch.uint8).numpy().tobytes()
    data = mmap.mmap(-1, len(contents))
    data[:] = bytes(contents)
    return data, places


def copies_of(places: list[StoredTensor], padding: int) -> tuple[MatrixCopies, int]:
    """One behind the other, ``padding`` numbers behind each row; and their end."""
    copies, end = [], 0
    for index, place in enumerate(places):
        rows, columns = place.shape
        copies.append(MatrixCopy(place, (1.0, 0.3, -2.0)[index % 3], end, columns + padding))
        end += rows * (columns + padding)
    return MatrixCopies(copies), end


@pytest.mark.parametrize("variant", runnable_variants())
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("target", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_c_and_torch_give_the_same_bits(
    source: torch.dtype, target: torch.dtype, padding: int, variant: str
) -> None:
    torch.manual_seed(0)
    matrices = [(torch.randn(shape) * 100).to(source) for shape in SHAPES]
    for gap in (0, 1, 4):
        data, places = stored(matrices, gap)
        copies, size = copies_of(places, padding)
        by_torch, by_c = torch.full((2, size), -7.0, dtype=target)
        assert copies.fill_by_torch(by_torch, data)
        assert copies.fill_in_c(by_c, data, load_library(variant).copy_matrices)
        assert torch.equal(by_torch, by_c)
        first = by_c[: matrices[0].numel()]
        assert torch.equal(first, matrices[0].flatten().to(target))
        assert (by_c == -7.0).sum() >= padding * sum(rows for rows, _ in SHAPES)


@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_all_numbers_are_scaled_and_rounded_once(source: torch.dtype) -> None:
    """Every number of sixteen bits, and as many of thirty-two."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32)
    if source is torch.float32:
        numbers = (bits * 65537 + 12345).view(torch.float32)
    else:
        numbers = bits.to(torch.int16).view(source)
    numbers = numbers[numbers.isfinite()].view(1, -1)
    data, places = stored([numbers], 2)
    for target in DTYPES:
        out = torch.empty(numbers.numel(), dtype=target)
        MatrixCopies([MatrixCopy(places[0], 1.6, 0, numbers.numel())]).fill(out, data)
        assert torch.equal(out, (numbers[0].float() * 1.6).to(target))


@pytest.mark.parametrize("variant", runnable_variants())
@pytest.mark.parametrize(
    ("number", "scaling", "target"),
    [
        (float("nan"), 1.0, torch.float32),
        (float("inf"), 1.0, torch.bfloat16),
        (float("-inf"), 1.0, torch.float16),
        (65000.0, 2.0, torch.float16),
        (3.4e38, 1.0, torch.bfloat16),
        (3e38, 2.0, torch.float32),
    ],
)
def test_what_is_not_finite_in_the_target_is_told(
    number: float, scaling: float, target: torch.dtype, variant: str
) -> None:
    function = load_library(variant).copy_matrices
    for place in (0, 33, 40):
        matrix = torch.ones(1, 41)
        data, places = stored([torch.ones(2, 3), matrix], 0)
        copies = MatrixCopies(
            [MatrixCopy(places[0], 1.0, 0, 3), MatrixCopy(places[1], scaling, 6, 41)]
        )
        out = torch.empty(47, dtype=target)
        assert copies.fill_in_c(out, data, function)
        matrix[0, place] = number
        data, places = stored([torch.ones(2, 3), matrix], 0)
        assert not copies.fill_in_c(out, data, function)
        assert not copies.fill_by_torch(out, data)

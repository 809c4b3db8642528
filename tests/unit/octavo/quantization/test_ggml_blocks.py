"""Decoding ggml's blocks, against the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from octavo.kernels.interface import GGMLType, PackedTensor
from octavo.quantization import ggml_blocks
from octavo.quantization.ggml_blocks import FORMATS, dequantize, row_bytes

QUANTISABLE = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
# Where the float16 numbers of a block lie; random bytes there would be NaN now and then.
HALVES = {
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def random_blocks(kind: str, num_rows: int, blocks_per_row: int, seed: int = 0) -> np.ndarray:
    """Every bit random but the scales, which are numbers of either sign."""
    random = np.random.default_rng(seed)
    size = FORMATS[GGMLType[kind]].num_bytes
    blocks = random.integers(0, 256, (num_rows, blocks_per_row, size), dtype=np.uint8)
    for offset in HALVES[kind]:
        scales = random.normal(size=(num_rows, blocks_per_row)).astype(np.float16)
        blocks[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(num_rows, -1)


def packed(blocks: np.ndarray, kind: str) -> PackedTensor:
    block = FORMATS[GGMLType[kind]]
    num_columns = blocks.shape[1] // block.num_bytes * block.num_values
    return PackedTensor(torch.from_numpy(blocks), GGMLType[kind], num_columns)


def reference(blocks: np.ndarray, kind: str) -> np.ndarray:
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    return np.asarray(values, dtype=np.float32)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize(("num_rows", "blocks_per_row"), [(1, 1), (7, 3), (33, 2)])
def test_random_blocks_decode_as_the_package_does(
    kind: str, num_rows: int, blocks_per_row: int
) -> None:
    blocks = random_blocks(kind, num_rows, blocks_per_row)
    matrix = dequantize(packed(blocks, kind))
    assert matrix.shape == packed(blocks, kind).shape
    assert matrix.dtype is torch.float32
    assert np.array_equal(matrix.numpy(), reference(blocks, kind))


@pytest.mark.parametrize("kind", QUANTISABLE)
def test_quantised_values_come_back(kind: str) -> None:
    values = np.random.default_rng(1).normal(size=(9, 96)).astype(np.float32)
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    blocks = np.ascontiguousarray(blocks).view(np.uint8)
    matrix = dequantize(packed(blocks, kind)).numpy()
    assert np.array_equal(matrix, reference(blocks, kind))
    # A quarter of the largest quantisation step of four bits, at 3 standard deviations.
    assert np.abs(matrix - values).max() < 0.35


def test_decoding_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = random_blocks("Q4_K", 11, 2)
    whole = dequantize(packed(blocks, "Q4_K"))
    monkeypatch.setattr(ggml_blocks, "_CPU_CHUNK_VALUES", 3 * 512)
    assert torch.equal(dequantize(packed(blocks, "Q4_K")), whole)


def test_result_is_rounded_to_the_dtype_asked_for() -> None:
    blocks = random_blocks("Q6_K", 4, 1)
    rounded = dequantize(packed(blocks, "Q6_K"), torch.bfloat16)
    assert rounded.dtype is torch.bfloat16
    assert torch.equal(rounded, dequantize(packed(blocks, "Q6_K")).to(torch.bfloat16))


def test_rows_need_not_be_contiguous() -> None:
    blocks = random_blocks("Q5_1", 6, 2)
    every_other = torch.from_numpy(blocks)[::2]
    matrix = dequantize(PackedTensor(every_other, GGMLType.Q5_1, 64))
    assert np.array_equal(matrix.numpy(), reference(np.ascontiguousarray(blocks[::2]), "Q5_1"))


@pytest.mark.parametrize("kind", list(GGMLType))
def test_row_bytes_are_the_packages(kind: GGMLType) -> None:
    block_size, type_size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]]
    assert row_bytes(kind, 512) == 512 // block_size * type_size


def test_row_of_broken_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="100 columns are not a multiple of 32"):
        row_bytes(GGMLType.Q4_0, 100)

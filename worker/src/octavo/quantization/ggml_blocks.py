"""ggml's quantised blocks, decoded with plain torch.

The truth that packed kernels are compared with, and the way to load encodings that a device does
not keep packed. Knows the layout of blocks; knows nothing of files or of matrix products.

Source: the block structures and ``dequantize_row_*`` of ggml (``ggml-common.h``,
``ggml-quants.c``). All numbers are little-endian; ``d`` and ``m`` are float16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.interface import GGMLType, PackedTensor

_DEVICE_CHUNK_VALUES = 1 << 24
"""Values decoded at once on a GPU: bounds the workspace to some 64 MiB a temporary."""
_CPU_CHUNK_VALUES = 1 << 15
"""The same on the CPU: torch's grain size, up to which an operation stays on the calling thread.
A dozen parallel operations a chunk spend more time waiting for each other than computing, a
hundred times more on a machine that does something else as well."""


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """Size of one block, and how to decode ``[num_blocks, num_bytes]`` of them."""

    num_values: int
    num_bytes: int
    decode: Callable[[Tensor], Tensor]
    """``[num_blocks, num_bytes], uint8`` → ``[num_blocks, num_values], float32``."""


def row_bytes(kind: GGMLType, num_columns: int) -> int:
    """Bytes of one row. Raises ValueError when the row is not a whole number of blocks."""
    block = FORMATS[kind]
    if num_columns % block.num_values:
        raise ValueError(f"{num_columns} columns are not a multiple of {block.num_values}")
    return num_columns // block.num_values * block.num_bytes


def dequantize(packed: PackedTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix a packed tensor stands for: ``[num_rows, num_columns]`` of ``dtype``.

    Decoded in float32 on the tensor's own device, some rows at a time, then rounded.
    """
    num_rows, num_columns = packed.shape
    block = FORMATS[packed.kind]
    matrix = torch.empty(num_rows, num_columns, dtype=dtype, device=packed.blocks.device)
    is_cpu = packed.blocks.device.type == "cpu"
    chunk_values = _CPU_CHUNK_VALUES if is_cpu else _DEVICE_CHUNK_VALUES
    rows_at_once = max(1, chunk_values // num_columns)
    for start in range(0, num_rows, rows_at_once):
        rows = packed.blocks[start : start + rows_at_once].contiguous()
        values = block.decode(rows.view(-1, block.num_bytes))
        matrix[start : start + rows_at_once] = values.view(-1, num_columns)
    return matrix


def _decode_f32(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float32)


def _decode_f16(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float16).float()


def _decode_bf16(blocks: Tensor) -> Tensor:
    return blocks.view(torch.bfloat16).float()


def _decode_q8_0(blocks: Tensor) -> Tensor:
    """``d, 32 x int8``."""
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8)


def _decode_q4_0(blocks: Tensor) -> Tensor:
    """``d, 16 bytes``: low nibbles are values 0 to 15, high ones 16 to 31; 8 means zero."""
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _decode_q4_1(blocks: Tensor) -> Tensor:
    """``d, m, 16 bytes`` of nibbles as in Q4_0: ``d * q + m``."""
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _decode_q5_0(blocks: Tensor) -> Tensor:
    """``d, 32 fifth bits, 16 bytes`` of nibbles; 16 means zero."""
    values = _nibbles(blocks[:, 6:]) | (_bits(blocks[:, 2:6]) << 4)
    return _half(blocks, 0) * (values.float() - 16)


def _decode_q5_1(blocks: Tensor) -> Tensor:
    """``d, m, 32 fifth bits, 16 bytes`` of nibbles: ``d * q + m``."""
    values = _nibbles(blocks[:, 8:]) | (_bits(blocks[:, 4:8]) << 4)
    return _half(blocks, 0) * values + _half(blocks, 2)


def _decode_q4_k(blocks: Tensor) -> Tensor:
    """``d, dmin, 12 bytes of 6-bit scales and mins, 128 bytes`` of nibbles.

    Eight groups of 32 values: ``d * scale * q - dmin * min``. Each 32 bytes hold two groups, the
    first in the low nibbles.
    """
    values = _group_nibbles(blocks[:, 16:], 32)
    return _scale_groups(blocks, values)


def _decode_q5_k(blocks: Tensor) -> Tensor:
    """As Q4_K, with 32 bytes of fifth bits before the nibbles: bit ``g`` is group ``g``'s."""
    fifth = blocks[:, 16:48]
    groups = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(1, 8, 1)
    high = (fifth.unsqueeze(1) >> groups) & 1
    values = _group_nibbles(blocks[:, 48:], 32) | (high << 4)
    return _scale_groups(blocks, values)


def _decode_q6_k(blocks: Tensor) -> Tensor:
    """``128 bytes of low nibbles, 64 of upper bit pairs, 16 int8 scales, d``.

    Sixteen groups of 16 values: ``d * scale * (q - 32)``. Each half of 128 values takes 64 bytes
    of nibbles (values 0 to 63 in the low ones) and 32 bytes of pairs (four runs of 32 values,
    the first in the lowest bits).
    """
    low = _group_nibbles(blocks[:, :128], 64).reshape(-1, 256)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device).view(1, 1, 4, 1)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    values = (low | (high.reshape(-1, 256) << 4)).float() - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    return (values.view(-1, 16, 16) * scales.unsqueeze(-1)).view(-1, 256)


FORMATS = {
    GGMLType.F32: BlockFormat(1, 4, _decode_f32),
    GGMLType.F16: BlockFormat(1, 2, _decode_f16),
    GGMLType.BF16: BlockFormat(1, 2, _decode_bf16),
    GGMLType.Q4_0: BlockFormat(32, 18, _decode_q4_0),
    GGMLType.Q4_1: BlockFormat(32, 20, _decode_q4_1),
    GGMLType.Q5_0: BlockFormat(32, 22, _decode_q5_0),
    GGMLType.Q5_1: BlockFormat(32, 24, _decode_q5_1),
    GGMLType.Q8_0: BlockFormat(32, 34, _decode_q8_0),
    GGMLType.Q4_K: BlockFormat(256, 144, _decode_q4_k),
    GGMLType.Q5_K: BlockFormat(256, 176, _decode_q5_k),
    GGMLType.Q6_K: BlockFormat(256, 210, _decode_q6_k),
}


def _half(blocks: Tensor, offset: int) -> Tensor:
    """The float16 at a byte offset of each block: ``[num_blocks, 1], float32``."""
    return blocks[:, offset : offset + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """``[num_blocks, n]`` bytes → ``[num_blocks, 2 * n]``: all low nibbles, then all high."""
    return torch.cat([packed & 0x0F, packed >> 4], dim=1)


def _bits(packed: Tensor) -> Tensor:
    """``[num_blocks, 4]`` bytes → ``[num_blocks, 32]`` bits, lowest first."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & 1).view(-1, 32)


def _group_nibbles(packed: Tensor, run: int) -> Tensor:
    """Nibbles of each ``run`` bytes, low ones first: ``[num_blocks, 2 * num_runs, run]``."""
    runs = packed.reshape(packed.shape[0], -1, 1, run)
    return torch.cat([runs & 0x0F, runs >> 4], dim=2).flatten(1, 2)


def _scale_groups(blocks: Tensor, values: Tensor) -> Tensor:
    """``[num_blocks, 8, 32]`` quants of Q4_K or Q5_K → ``[num_blocks, 256], float32``."""
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    scale = (_half(blocks, 0) * scales).unsqueeze(-1)
    minimum = (_half(blocks, 2) * mins).unsqueeze(-1)
    return (scale * values - minimum).view(-1, 256)


def _scales_and_mins(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and mins out of 12 bytes.

    Bytes 0-3 hold scales 0-3 in their low six bits, bytes 4-7 mins 0-3 likewise. Bytes 8-11 hold
    the low nibbles of scales 4-7 (low) and mins 4-7 (high), whose upper two bits are those of
    bytes 0-3 and 4-7.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat([first & 0x3F, (third & 0x0F) | ((first >> 6) << 4)], dim=1)
    mins = torch.cat([second & 0x3F, (third >> 4) | ((second >> 6) << 4)], dim=1)
    return scales, mins

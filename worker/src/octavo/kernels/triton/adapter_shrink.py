"""LoRA's first half for every token of a step at once: A x, by tiles of one adapter each."""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.adapter_operands import Operands, Shrunk, locate, tokens_of_tile
from octavo.kernels.triton.launch import ceil_div, next_power_of_two
from octavo.kernels.triton.overlap import prefetch, wait_for_predecessors
from octavo.kernels.triton.pages import multiply

_MAX_SPLITS = 8
"""Of the input, for more programs that each go few rounds. Not more: who expands reads all splits
of its tokens."""
_PROGRAMS = 256
"""So many at least, before the input is split less."""
_MAX_BLOCK_R = 64
"""Of a program's columns, of all parts: x is read once for them."""
_LINE_ELEMENTS = 64
"""Two-byte elements in a cache line of 128 bytes."""


@triton.jit(do_not_specialize=["index", "num_projections", "num_tokens", "num_tiles"])
def _shrink_program(
    x,
    a,
    table,
    order,
    tiles,
    shrunk,
    index,
    num_projections,
    num_tokens,
    num_tiles,
    slot_stride,
    x_stride,
    MAX_RANK: tl.constexpr,
    SLOT_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OVERLAP: tl.constexpr,
    IN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LINE_ELEMENTS: tl.constexpr,
):
    """``shrunk[split, token in order, part * MAX_RANK + r]`` for one tile, block of those columns
    and share of the input."""
    tile = tl.program_id(1)
    slot = tl.load(tiles + tile)
    _, rank = locate(table, slot, index, num_projections)
    width: tl.constexpr = NUM_PARTS * MAX_RANK
    first_target = tl.program_id(0) * BLOCK_R
    targets = first_target + tl.arange(0, BLOCK_R)
    is_row = (targets < width) & (targets % MAX_RANK < rank)
    # Where a row is not needed, one that is there is read in its place, if at all.
    row = (targets // MAX_RANK) * SLOT_RANK + tl.minimum(targets % MAX_RANK, rank - 1)
    row_offsets = tl.where(targets < width, row, 0) * IN
    first, places, is_token, tokens, _ = tokens_of_tile(order, tiles, num_tiles, tile, TILE)
    split = tl.program_id(2)
    blocks_of_split: tl.constexpr = (IN + BLOCK_K * NUM_SPLITS - 1) // (BLOCK_K * NUM_SPLITS)
    begin = split * blocks_of_split * BLOCK_K
    columns = begin + tl.arange(0, BLOCK_K)
    matrix = a + slot * slot_stride
    is_needed = first_target % MAX_RANK < rank
    if is_needed:
        # Adapters are there long before; only x comes from the program just ahead.
        lines = begin + tl.arange(0, BLOCK_K // LINE_ELEMENTS) * LINE_ELEMENTS
        prefetch(matrix + row_offsets[:, None] + tl.minimum(lines, IN - 1)[None, :], OVERLAP)
    wait_for_predecessors(OVERLAP)
    if is_needed:
        x_pointers = x + tokens[:, None] * x_stride + columns[None, :]
        a_pointers = matrix + row_offsets[:, None] + columns[None, :]
        total = tl.zeros((TILE, BLOCK_R), tl.float32)
        for step in range(blocks_of_split):
            is_column = columns + step * BLOCK_K < IN
            values = tl.load(
                x_pointers + step * BLOCK_K, mask=is_token[:, None] & is_column[None, :], other=0.0
            )
            rows = tl.load(
                a_pointers + step * BLOCK_K,
                mask=is_row[:, None] & is_column[None, :],
                other=0.0,
            )
            total += multiply(values, tl.trans(rows), INTERPRETED)
        target = shrunk + (split.to(tl.int64) * num_tokens + first + places[:, None]) * width
        target += targets[None, :]
        tl.store(target, total, mask=is_token[:, None] & (targets < width)[None, :])


def shrink(x: Tensor, operands: Operands) -> Shrunk:
    """``x: [T, in_features]``, rows contiguous → A x, in the order of the tiles."""
    a = operands.stack.a[operands.index]
    num_parts, rank = len(operands.projection.names), operands.storage_rank
    block_r = min(next_power_of_two(num_parts * rank), _MAX_BLOCK_R)
    num_blocks = ceil_div(num_parts * rank, block_r)
    block_k = 256 if operands.tiles.tile_size * block_r <= 512 else 128
    num_splits = _num_splits(operands, num_blocks, block_k)
    shape = (num_splits, operands.num_tokens, num_parts * rank)
    shrunk = torch.empty(shape, dtype=torch.float32, device=x.device)
    _shrink_program[(num_blocks, operands.tiles.num_tiles, num_splits)](
        x,
        *operands.arguments(a, shrunk),
        a.stride(0),
        x.stride(0),
        **operands.constants(num_splits),
        IN=operands.projection.in_features,
        BLOCK_R=block_r,
        BLOCK_K=block_k,
        LINE_ELEMENTS=_LINE_ELEMENTS,
        num_warps=4,
        num_stages=3,
    )
    return Shrunk(shrunk, num_splits)


def _num_splits(operands: Operands, num_blocks: int, block_k: int) -> int:
    """A power of two, so that few programs are compiled; no more than give each two rounds."""
    most = min(_MAX_SPLITS, max(1, operands.projection.in_features // (2 * block_k)))
    if not operands.tiles.is_uniform:
        most = min(most, max(1, _PROGRAMS // (num_blocks * operands.tiles.likely_tiles)))
    return 1 << (most.bit_length() - 1)

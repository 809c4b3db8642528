"""LoRA's second half: B of what was shrunk, for every token of a step at once.

Added to the product in place; to gate and up by the activation, which reads them anyway. A program
has a tile of one adapter's tokens and goes over several blocks of columns, those to come on their
way while it works.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.activation import activated
from octavo.kernels.triton.adapter_operands import (
    Operands,
    Shrunk,
    columns_of_part,
    locate,
    rows_of_b,
    tokens_of_tile,
)
from octavo.kernels.triton.launch import ceil_div
from octavo.kernels.triton.overlap import prefetch, wait_for_predecessors
from octavo.kernels.triton.pages import multiply

MAX_GATED_RANK = 64
"""Of both gate and up at once, in registers."""
_PROGRAMS = 512
"""So many at least, before one takes several blocks of columns."""
_MAX_BLOCKS = 4


@triton.jit
def _inner(
    shrunk,
    stride,
    slot,
    first,
    places,
    is_token,
    tokens,
    num_tokens,
    rank,
    part,
    MAX_RANK: tl.constexpr,
    SLOT_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    """A x of a tile's tokens for one part: ``[TILE, MAX_RANK]``."""
    ranks = tl.arange(0, MAX_RANK)
    mask = is_token[:, None] & (ranks < rank)[None, :]
    if NUM_SPLITS == 0:
        column = (slot * NUM_PARTS + part) * SLOT_RANK
        source = shrunk + tokens[:, None] * stride + column + ranks[None, :]
        total = tl.load(source, mask=mask, other=0.0)
    else:
        source = shrunk + (first + places[:, None]) * stride + part * MAX_RANK + ranks[None, :]
        total = tl.zeros((TILE, MAX_RANK), tl.float32)
        for split in tl.static_range(NUM_SPLITS):
            split_size = num_tokens.to(tl.int64) * stride
            total += tl.load(source + split * split_size, mask=mask, other=0.0)
    return total


@triton.jit(do_not_specialize=["index", "num_projections", "num_tokens", "num_tiles", "num_blocks"])
def _expand_program(
    y,
    b,
    table,
    order,
    tiles,
    shrunk,
    index,
    num_projections,
    num_tokens,
    num_tiles,
    slot_stride,
    shrunk_stride,
    y_stride,
    num_blocks,
    MAX_RANK: tl.constexpr,
    SLOT_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OVERLAP: tl.constexpr,
    OUT_0: tl.constexpr,
    OUT_1: tl.constexpr,
    OUT_2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """``y[token, n] += ...`` for one tile and ``num_blocks`` blocks of one part's columns."""
    tile = tl.program_id(1)
    slot = tl.load(tiles + tile)
    first, places, is_token, tokens, count = tokens_of_tile(order, tiles, num_tiles, tile, TILE)
    offset, rank = locate(table, slot, index, num_projections)
    part = tl.program_id(2)
    begin, size = columns_of_part(part, OUT_0, OUT_1, OUT_2)
    first_column = tl.program_id(0) * num_blocks * BLOCK_N
    # Nothing is to be done for a tile that is not needed, for tokens without an adapter and for
    # columns past the part's.
    is_needed = (count > 0) & (rank > 0) & (first_column < size)
    matrix = b + slot * slot_stride + offset
    lanes = tl.arange(0, BLOCK_N)
    if is_needed:
        # Adapters are there long before.
        prefetch(matrix + (begin + tl.minimum(first_column + lanes, size - 1)) * rank, OVERLAP)
    wait_for_predecessors(OVERLAP)
    if is_needed:
        inner = _inner(
            shrunk, shrunk_stride, slot, first, places, is_token, tokens, num_tokens, rank, part,
            MAX_RANK, SLOT_RANK, NUM_PARTS, TILE, NUM_SPLITS,
        ).to(b.dtype.element_ty)  # fmt: skip
        for step in tl.range(0, num_blocks, num_stages=NUM_STAGES):
            inside = first_column + step * BLOCK_N + lanes
            is_column = inside < size
            mask = is_token[:, None] & is_column[None, :]
            pointers = y + tokens[:, None] * y_stride + (begin + inside)[None, :]
            before = tl.load(pointers, mask=mask, other=0.0)
            rows = rows_of_b(matrix, begin + inside, is_column, rank, MAX_RANK)
            result = multiply(inner, tl.trans(rows), INTERPRETED) + before.to(tl.float32)
            tl.store(pointers, result.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["index", "num_projections", "num_tokens", "num_tiles", "num_blocks"])
def _gated_expand_program(
    gate_up,
    b,
    table,
    order,
    tiles,
    shrunk,
    index,
    num_projections,
    num_tokens,
    num_tiles,
    slot_stride,
    shrunk_stride,
    gate_up_stride,
    num_blocks,
    out,
    MAX_RANK: tl.constexpr,
    SLOT_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OVERLAP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    IS_SILU: tl.constexpr,
):
    """``out = activation(gate + ...) * (up + ...)`` for one tile and ``num_blocks`` blocks of
    columns; tiles of tokens without an adapter too."""
    tile = tl.program_id(1)
    slot = tl.load(tiles + tile)
    first, places, is_token, tokens, count = tokens_of_tile(order, tiles, num_tiles, tile, TILE)
    offset, rank = locate(table, slot, index, num_projections)
    first_column = tl.program_id(0) * num_blocks * BLOCK_N
    matrix = b + slot * slot_stride + offset
    lanes = tl.arange(0, BLOCK_N)
    if (count > 0) & (rank > 0):
        near = tl.minimum(first_column + lanes, SIZE - 1)
        prefetch(matrix + near * rank, OVERLAP)
        prefetch(matrix + (SIZE + near) * rank, OVERLAP)
    wait_for_predecessors(OVERLAP)
    if count > 0:
        inner_gate = _inner(
            shrunk, shrunk_stride, slot, first, places, is_token, tokens, num_tokens, rank, 0,
            MAX_RANK, SLOT_RANK, NUM_PARTS, TILE, NUM_SPLITS,
        ).to(b.dtype.element_ty)  # fmt: skip
        inner_up = _inner(
            shrunk, shrunk_stride, slot, first, places, is_token, tokens, num_tokens, rank, 1,
            MAX_RANK, SLOT_RANK, NUM_PARTS, TILE, NUM_SPLITS,
        ).to(b.dtype.element_ty)  # fmt: skip
        for step in tl.range(0, num_blocks, num_stages=NUM_STAGES):
            columns = first_column + step * BLOCK_N + lanes
            is_column = columns < SIZE
            mask = is_token[:, None] & is_column[None, :]
            pointers = gate_up + tokens[:, None] * gate_up_stride + columns[None, :]
            gate = tl.load(pointers, mask=mask, other=0.0)
            up = tl.load(pointers + SIZE, mask=mask, other=0.0)
            rows = rows_of_b(matrix, columns, is_column, rank, MAX_RANK)
            whole_gate = gate.to(tl.float32) + multiply(inner_gate, tl.trans(rows), INTERPRETED)
            rows = rows_of_b(matrix, SIZE + columns, is_column, rank, MAX_RANK)
            whole_up = up.to(tl.float32) + multiply(inner_up, tl.trans(rows), INTERPRETED)
            target = out + tokens[:, None] * SIZE + columns[None, :]
            result = activated(whole_gate, IS_SILU, INTERPRETED) * whole_up
            tl.store(target, result.to(out.dtype.element_ty), mask=mask)


def expand(y: Tensor, shrunk: Shrunk, operands: Operands) -> None:
    """Add to ``y: [T, out_features]``, rows contiguous, in place."""
    assert y.stride(1) == 1
    sizes = operands.projection.out_features
    shape = _Shape.of(operands)
    num_programs, num_blocks = shape.shares(max(sizes), len(sizes), operands)
    _expand_program[(num_programs, operands.tiles.num_tiles, len(sizes))](
        y,
        *operands.expand_arguments(shrunk),
        y.stride(0),
        num_blocks,
        **_constants(operands, shrunk, shape),
        **operands.part_sizes,
    )


def gated_expand(gate_up: Tensor, shrunk: Shrunk, operands: Operands, is_silu: bool) -> Tensor:
    """``gate_up: [T, 2 * size]``, rows contiguous → ``[T, size]``; up to :data:`MAX_GATED_RANK`."""
    assert gate_up.stride(1) == 1
    size = operands.projection.out_features[0]
    out = torch.empty(gate_up.shape[0], size, dtype=gate_up.dtype, device=gate_up.device)
    shape = _Shape.of(operands)
    num_programs, num_blocks = shape.shares(size, 2, operands)
    _gated_expand_program[(num_programs, operands.tiles.num_tiles)](
        gate_up,
        *operands.expand_arguments(shrunk),
        gate_up.stride(0),
        num_blocks,
        out,
        **_constants(operands, shrunk, shape),
        SIZE=size,
        IS_SILU=is_silu,
    )
    return out


def _constants(operands: Operands, shrunk: Shrunk, shape: _Shape) -> dict[str, Any]:
    """Of both programs; and how they are launched."""
    return {
        **operands.constants(shrunk.num_splits),
        "BLOCK_N": shape.block_n,
        "NUM_STAGES": shape.num_stages,
        "num_warps": shape.num_warps,
        "num_stages": 1,
    }


@dataclass(frozen=True, slots=True)
class _Shape:
    """Of programs that expand, by what they hold at once: a tile of tokens, all of the rank."""

    block_n: int
    """Columns at a time."""
    num_stages: int
    """Blocks of columns on their way."""
    num_warps: int

    @classmethod
    def of(cls, operands: Operands) -> _Shape:
        tile, rank = operands.tiles.tile_size, operands.storage_rank
        held = tile * rank
        num_warps = 2 if held < 512 else 4 if held < 8192 else 8
        return cls(min(64, 8192 // rank), {16: 3, 32: 3, 64: 2}.get(rank, 1), num_warps)

    def shares(self, size: int, num_parts: int, operands: Operands) -> tuple[int, int]:
        """Programs for a part's columns, and how many blocks of them each takes."""
        num_blocks = ceil_div(size, self.block_n)
        num_programs = num_blocks * num_parts * operands.tiles.likely_tiles
        each = max(1, min(num_programs // _PROGRAMS, _MAX_BLOCKS))
        each = 1 << (each.bit_length() - 1)
        return ceil_div(num_blocks, each), each

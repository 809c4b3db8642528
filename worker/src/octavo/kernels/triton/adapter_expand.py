"""LoRA's second half: B of what was shrunk, for every token of a step at once.

Three ways to leave it: added to the product in place; by itself, for whoever reads the product
next; or added to gate and up by the activation, which reads them anyway. A program adds up the
splits of its tokens once and then goes over several blocks of columns, those to come on their way
while it works.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.activation import activated
from octavo.kernels.triton.adapter_operands import Operands, Shrunk, locate, tokens_of_tile
from octavo.kernels.triton.adapter_tiles import MAX_TILE, MIN_TILE
from octavo.kernels.triton.overlap import wait_for_predecessors
from octavo.kernels.triton.pages import multiply

MAX_GATED_RANK = 64
"""Of both gate and up at once, in registers."""
_PROGRAMS = 512
"""So many at least, before one takes several blocks of columns."""
_MAX_BLOCKS = 8


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
        total = tl.load(
            shrunk + tokens[:, None] * stride + column + ranks[None, :], mask=mask, other=0.0
        )
    else:
        source = shrunk + (first + places[:, None]) * stride + part * MAX_RANK + ranks[None, :]
        total = tl.zeros((TILE, MAX_RANK), tl.float32)
        for split in tl.static_range(NUM_SPLITS):
            total += tl.load(
                source + split * num_tokens.to(tl.int64) * stride, mask=mask, other=0.0
            )
    return total


@triton.jit
def _rows_of_b(matrix, columns, is_column, rank, MAX_RANK: tl.constexpr):
    """``[BLOCK_N, MAX_RANK]``"""
    ranks = tl.arange(0, MAX_RANK)
    return tl.load(
        matrix + columns[:, None] * rank + ranks[None, :],
        mask=is_column[:, None] & (ranks < rank)[None, :],
        other=0.0,
    )


@triton.jit(do_not_specialize=["index", "num_tokens", "num_tiles", "num_blocks"])
def _expand_program(
    y,
    b,
    table,
    order,
    tiles,
    shrunk,
    index,
    num_tokens,
    num_tiles,
    slot_stride,
    shrunk_stride,
    y_stride,
    num_blocks,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OVERLAP: tl.constexpr,
    SLOT_RANK: tl.constexpr,
    OUT_0: tl.constexpr,
    OUT_1: tl.constexpr,
    OUT_2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_IN_PLACE: tl.constexpr,
):
    """``y[token, n] += ...`` for one tile and ``num_blocks`` blocks of one part's columns; where
    not in place, ``y[token, n] = ...``, for tokens without an adapter too."""
    tile = tl.program_id(1)
    slot = tl.load(tiles + tile)
    first, places, is_token, tokens = tokens_of_tile(order, tiles, num_tiles, tile, TILE)
    offset, rank = locate(table, slot, index, NUM_PROJECTIONS)
    part = tl.program_id(2)
    begin = (part > 0).to(tl.int32) * OUT_0 + (part > 1).to(tl.int32) * OUT_1
    size = tl.where(part == 0, OUT_0, tl.where(part == 1, OUT_1, OUT_2))
    first_column = tl.program_id(0) * num_blocks * BLOCK_N
    # Nothing is to be done for a tile that is not needed, for columns past the part's and, in
    # place, for tokens without an adapter.
    end = tl.where(tl.load(tiles + 2 * num_tiles + tile) > 0, size, 0)
    if IS_IN_PLACE:
        end = tl.where(rank > 0, end, 0)
    end = tl.minimum(end, first_column + num_blocks * BLOCK_N)
    matrix = b + slot * slot_stride + offset
    inside = first_column + tl.arange(0, BLOCK_N)
    # Adapters are there long before.
    rows = _rows_of_b(matrix, begin + inside, inside < end, rank, MAX_RANK)
    wait_for_predecessors(OVERLAP)
    if first_column < end:
        pointers = y + tokens[:, None] * y_stride + begin
        before = tl.zeros((TILE, BLOCK_N), y.dtype.element_ty)
        if IS_IN_PLACE:
            mask = is_token[:, None] & (inside < end)[None, :]
            before = tl.load(pointers + inside[None, :], mask=mask, other=0.0)
        inner = _inner(
            shrunk, shrunk_stride, slot, first, places, is_token, tokens, num_tokens, rank, part,
            MAX_RANK, SLOT_RANK, NUM_PARTS, TILE, NUM_SPLITS,
        ).to(b.dtype.element_ty)  # fmt: skip
        while first_column < end:
            # The next block comes while this one is multiplied.
            later = inside + BLOCK_N
            next_rows = _rows_of_b(matrix, begin + later, later < end, rank, MAX_RANK)
            next_before = before
            if IS_IN_PLACE:
                mask = is_token[:, None] & (later < end)[None, :]
                next_before = tl.load(pointers + later[None, :], mask=mask, other=0.0)
            result = multiply(inner, tl.trans(rows), INTERPRETED)
            if IS_IN_PLACE:
                result += before.to(tl.float32)
            mask = is_token[:, None] & (inside < end)[None, :]
            tl.store(pointers + inside[None, :], result.to(y.dtype.element_ty), mask=mask)
            rows, before, inside = next_rows, next_before, later
            first_column += BLOCK_N


@triton.jit
def _gate_and_up(pointers, columns, is_token, end, SIZE: tl.constexpr):
    """Both of a block of columns, ``[TILE, BLOCK_N]``."""
    mask = is_token[:, None] & (columns < end)[None, :]
    gate = tl.load(pointers + columns[None, :], mask=mask, other=0.0)
    up = tl.load(pointers + SIZE + columns[None, :], mask=mask, other=0.0)
    return gate, up


@triton.jit(do_not_specialize=["index", "num_tokens", "num_tiles", "num_blocks"])
def _gated_expand_program(
    gate_up,
    b,
    table,
    order,
    tiles,
    shrunk,
    index,
    num_tokens,
    num_tiles,
    slot_stride,
    shrunk_stride,
    gate_up_stride,
    num_blocks,
    out,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OVERLAP: tl.constexpr,
    SLOT_RANK: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_SILU: tl.constexpr,
):
    """``out = activation(gate + ...) * (up + ...)`` for one tile and ``num_blocks`` blocks of
    columns; tiles of tokens without an adapter too."""
    tile = tl.program_id(1)
    slot = tl.load(tiles + tile)
    first, places, is_token, tokens = tokens_of_tile(order, tiles, num_tiles, tile, TILE)
    offset, rank = locate(table, slot, index, NUM_PROJECTIONS)
    first_column = tl.program_id(0) * num_blocks * BLOCK_N
    end = tl.where(tl.load(tiles + 2 * num_tiles + tile) > 0, SIZE, 0)
    end = tl.minimum(end, first_column + num_blocks * BLOCK_N)
    matrix = b + slot * slot_stride + offset
    columns = first_column + tl.arange(0, BLOCK_N)
    gate_rows = _rows_of_b(matrix, columns, columns < end, rank, MAX_RANK)
    up_rows = _rows_of_b(matrix, SIZE + columns, columns < end, rank, MAX_RANK)
    wait_for_predecessors(OVERLAP)
    if first_column < end:
        pointers = gate_up + tokens[:, None] * gate_up_stride
        gate, up = _gate_and_up(pointers, columns, is_token, end, SIZE)
        inner_gate = _inner(
            shrunk, shrunk_stride, slot, first, places, is_token, tokens, num_tokens, rank, 0,
            MAX_RANK, SLOT_RANK, NUM_PARTS, TILE, NUM_SPLITS,
        ).to(b.dtype.element_ty)  # fmt: skip
        inner_up = _inner(
            shrunk, shrunk_stride, slot, first, places, is_token, tokens, num_tokens, rank, 1,
            MAX_RANK, SLOT_RANK, NUM_PARTS, TILE, NUM_SPLITS,
        ).to(b.dtype.element_ty)  # fmt: skip
        while first_column < end:
            later = columns + BLOCK_N
            next_gate_rows = _rows_of_b(matrix, later, later < end, rank, MAX_RANK)
            next_up_rows = _rows_of_b(matrix, SIZE + later, later < end, rank, MAX_RANK)
            next_gate, next_up = _gate_and_up(pointers, later, is_token, end, SIZE)
            whole_gate = gate.to(tl.float32) + multiply(
                inner_gate, tl.trans(gate_rows), INTERPRETED
            )
            whole_up = up.to(tl.float32) + multiply(inner_up, tl.trans(up_rows), INTERPRETED)
            mask = is_token[:, None] & (columns < end)[None, :]
            result = (activated(whole_gate, IS_SILU) * whole_up).to(out.dtype.element_ty)
            tl.store(out + tokens[:, None] * SIZE + columns[None, :], result, mask=mask)
            gate_rows, up_rows, gate, up = next_gate_rows, next_up_rows, next_gate, next_up
            columns = later
            first_column += BLOCK_N


def expand(y: Tensor, shrunk: Shrunk, operands: Operands) -> None:
    """Add to ``y: [T, out_features]``, rows contiguous, in place."""
    _expand(y, shrunk, operands, is_in_place=True)


def expanded(shrunk: Shrunk, operands: Operands, dtype: torch.dtype) -> Tensor:
    """What is to be added to the product: ``[T, out_features]``; 0 where there is no adapter."""
    width = sum(operands.projection.out_features)
    added = torch.empty(operands.num_tokens, width, dtype=dtype, device=shrunk.values.device)
    _expand(added, shrunk, operands, is_in_place=False)
    return added


def gated_expand(gate_up: Tensor, shrunk: Shrunk, operands: Operands, is_silu: bool) -> Tensor:
    """``gate_up: [T, 2 * size]``, rows contiguous → ``[T, size]``; up to :data:`MAX_GATED_RANK`."""
    size = operands.projection.out_features[0]
    assert gate_up.stride(1) == 1
    out = torch.empty(gate_up.shape[0], size, dtype=gate_up.dtype, device=gate_up.device)
    shape = _Shape.of(operands, gated=True)
    num_programs, num_blocks = shape.shares(size, 2, operands)
    _gated_expand_program[(num_programs, operands.tiles.num_tiles)](
        gate_up,
        *operands.arguments(operands.stack.b, shrunk.values),
        shrunk.values.stride(-2),
        gate_up.stride(0),
        num_blocks,
        out,
        **operands.constants(shrunk.num_splits),
        SLOT_RANK=operands.slot_rank,
        SIZE=size,
        BLOCK_N=shape.block_n,
        IS_SILU=is_silu,
        num_warps=shape.num_warps,
        num_stages=1,
    )
    return out


def _expand(y: Tensor, shrunk: Shrunk, operands: Operands, is_in_place: bool) -> None:
    assert y.stride(1) == 1
    sizes = operands.projection.out_features
    padded = [*sizes, 0, 0][:3]
    shape = _Shape.of(operands)
    num_programs, num_blocks = shape.shares(max(sizes), len(sizes), operands)
    _expand_program[(num_programs, operands.tiles.num_tiles, len(sizes))](
        y,
        *operands.arguments(operands.stack.b, shrunk.values),
        shrunk.values.stride(-2),
        y.stride(0),
        num_blocks,
        **operands.constants(shrunk.num_splits),
        SLOT_RANK=operands.slot_rank,
        OUT_0=padded[0],
        OUT_1=padded[1],
        OUT_2=padded[2],
        BLOCK_N=shape.block_n,
        IS_IN_PLACE=is_in_place,
        num_warps=shape.num_warps,
        num_stages=1,
    )


@dataclass(frozen=True, slots=True)
class _Shape:
    """Of programs that expand, by what they hold at once: a tile of tokens, all of the rank."""

    block_n: int
    """Columns at a time."""
    num_warps: int

    @classmethod
    def of(cls, operands: Operands, gated: bool = False) -> _Shape:
        tile, rank = operands.tiles.tile_size, operands.storage_rank
        block_n = min(128, 8192 // rank)
        if gated and tile == MAX_TILE:
            block_n //= 2
        return cls(
            block_n,
            4 if tile == MIN_TILE and rank < 64 else 8,
        )

    def shares(self, size: int, num_parts: int, operands: Operands) -> tuple[int, int]:
        """Programs for a part's columns, and how many blocks of them each takes."""
        num_blocks = triton.cdiv(size, self.block_n)
        num_programs = num_blocks * num_parts * operands.tiles.likely_tiles
        each = min(num_programs // _PROGRAMS, _MAX_BLOCKS)
        each = 1 << max(each.bit_length() - 1, 0)
        return triton.cdiv(num_blocks, each), each

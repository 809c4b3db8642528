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
from octavo.kernels.triton.adapter_operands import Operands, locate, tokens_of_tile
from octavo.kernels.triton.adapter_tiles import MAX_TILE, MIN_TILE
from octavo.kernels.triton.overlap import prefetch, wait_for_predecessors
from octavo.kernels.triton.pages import multiply

MAX_GATED_RANK = 64
"""Of both gate and up at once, in registers."""
_PROGRAMS = 512
"""So many at least, before one takes several blocks of columns."""
_MAX_BLOCKS = 8


@triton.jit
def _sum_of_splits(
    shrunk,
    first,
    places,
    is_token,
    num_tokens,
    rank,
    part,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    """A x of a tile's tokens for one part: ``[TILE, MAX_RANK], float32``."""
    width: tl.constexpr = NUM_PARTS * MAX_RANK
    ranks = tl.arange(0, MAX_RANK)
    source = shrunk + (first + places[:, None]) * width + part * MAX_RANK + ranks[None, :]
    mask = is_token[:, None] & (ranks < rank)[None, :]
    total = tl.zeros((TILE, MAX_RANK), tl.float32)
    for split in tl.static_range(NUM_SPLITS):
        total += tl.load(source + split * num_tokens.to(tl.int64) * width, mask=mask, other=0.0)
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
    storage,
    table,
    order,
    tiles,
    shrunk,
    index,
    num_tokens,
    num_tiles,
    slot_stride,
    num_blocks,
    IN: tl.constexpr,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OVERLAP: tl.constexpr,
    OUT_0: tl.constexpr,
    OUT_1: tl.constexpr,
    OUT_2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    IS_IN_PLACE: tl.constexpr,
):
    """``y[token, n] += ...`` for one tile and ``num_blocks`` blocks of one part's columns; where
    not in place, ``y[token, n] = ...``, for tokens without an adapter too."""
    tile = tl.program_id(1)
    slot = tl.load(tiles + tile)
    offset, rank = locate(table, slot, index, NUM_PROJECTIONS)
    first, places, is_token, tokens = tokens_of_tile(order, tiles, num_tiles, tile, TILE)
    part = tl.program_id(2)
    begin = (part > 0).to(tl.int32) * OUT_0 + (part > 1).to(tl.int32) * OUT_1
    size = tl.where(part == 0, OUT_0, tl.where(part == 1, OUT_1, OUT_2))
    first_column = tl.program_id(0) * num_blocks * BLOCK_N
    matrix = storage + slot * slot_stride + offset + NUM_PARTS * IN * rank
    lanes = tl.arange(0, BLOCK_N)
    # Nothing is to be done for a tile that is not needed, for columns past the part's and, in
    # place, for tokens without an adapter.
    end = tl.where(tl.load(tiles + 2 * num_tiles + tile) > 0, size, 0)
    if IS_IN_PLACE:
        end = tl.where(rank > 0, end, 0)
    if (rank > 0) & (first_column < end):
        # Adapters are there long before.
        prefetch(matrix + (begin + tl.minimum(first_column + lanes, size - 1)) * rank, OVERLAP)
    wait_for_predecessors(OVERLAP)
    if first_column < end:
        inner = _sum_of_splits(
            shrunk, first, places, is_token, num_tokens, rank, part,
            MAX_RANK, NUM_PARTS, TILE, NUM_SPLITS,
        ).to(storage.dtype.element_ty)  # fmt: skip
        out: tl.constexpr = OUT_0 + OUT_1 + OUT_2
        for step in tl.range(0, num_blocks, num_stages=NUM_STAGES):
            inside = first_column + step * BLOCK_N + lanes
            is_column = inside < end
            columns = begin + inside
            rows = _rows_of_b(matrix, columns, is_column, rank, MAX_RANK)
            result = multiply(inner, tl.trans(rows), INTERPRETED)
            pointers = y + tokens[:, None] * out + columns[None, :]
            mask = is_token[:, None] & is_column[None, :]
            if IS_IN_PLACE:
                result += tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
            tl.store(pointers, result.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["index", "num_tokens", "num_tiles", "num_blocks"])
def _gated_expand_program(
    gate_up,
    storage,
    table,
    order,
    tiles,
    shrunk,
    index,
    num_tokens,
    num_tiles,
    slot_stride,
    num_blocks,
    out,
    IN: tl.constexpr,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
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
    offset, rank = locate(table, slot, index, NUM_PROJECTIONS)
    first, places, is_token, tokens = tokens_of_tile(order, tiles, num_tiles, tile, TILE)
    first_column = tl.program_id(0) * num_blocks * BLOCK_N
    matrix = storage + slot * slot_stride + offset + 2 * IN * rank
    lanes = tl.arange(0, BLOCK_N)
    is_needed = tl.load(tiles + 2 * num_tiles + tile) > 0
    if is_needed & (rank > 0):
        near = tl.minimum(first_column + lanes, SIZE - 1)
        prefetch(matrix + near * rank, OVERLAP)
        prefetch(matrix + (SIZE + near) * rank, OVERLAP)
    wait_for_predecessors(OVERLAP)
    if is_needed:
        inner_gate = _sum_of_splits(
            shrunk, first, places, is_token, num_tokens, rank, 0,
            MAX_RANK, NUM_PARTS, TILE, NUM_SPLITS,
        ).to(storage.dtype.element_ty)  # fmt: skip
        inner_up = _sum_of_splits(
            shrunk, first, places, is_token, num_tokens, rank, 1,
            MAX_RANK, NUM_PARTS, TILE, NUM_SPLITS,
        ).to(storage.dtype.element_ty)  # fmt: skip
        for step in tl.range(0, num_blocks, num_stages=NUM_STAGES):
            columns = first_column + step * BLOCK_N + lanes
            is_column = columns < SIZE
            mask = is_token[:, None] & is_column[None, :]
            pointers = gate_up + tokens[:, None] * (2 * SIZE) + columns[None, :]
            gate = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
            up = tl.load(pointers + SIZE, mask=mask, other=0.0).to(tl.float32)
            rows = _rows_of_b(matrix, columns, is_column, rank, MAX_RANK)
            gate += multiply(inner_gate, tl.trans(rows), INTERPRETED)
            rows = _rows_of_b(matrix, SIZE + columns, is_column, rank, MAX_RANK)
            up += multiply(inner_up, tl.trans(rows), INTERPRETED)
            target = out + tokens[:, None] * SIZE + columns[None, :]
            result = (activated(gate, IS_SILU) * up).to(out.dtype.element_ty)
            tl.store(target, result, mask=mask)


def expand(y: Tensor, shrunk: Tensor, operands: Operands) -> None:
    """Add to ``y: [T, out_features]``, contiguous, in place."""
    _expand(y, shrunk, operands, is_in_place=True)


def expanded(shrunk: Tensor, operands: Operands, dtype: torch.dtype) -> Tensor:
    """What is to be added to the product: ``[T, out_features]``; 0 where there is no adapter."""
    width = sum(operands.projection.out_features)
    added = torch.empty(operands.num_tokens, width, dtype=dtype, device=shrunk.device)
    _expand(added, shrunk, operands, is_in_place=False)
    return added


def gated_expand(gate_up: Tensor, shrunk: Tensor, operands: Operands, is_silu: bool) -> Tensor:
    """``gate_up: [T, 2 * size]``, contiguous → ``[T, size]``; up to :data:`MAX_GATED_RANK`."""
    size = operands.projection.out_features[0]
    assert gate_up.is_contiguous()
    out = torch.empty(gate_up.shape[0], size, dtype=gate_up.dtype, device=gate_up.device)
    shape = _Shape.of(operands, gated=True)
    num_programs, num_blocks = shape.shares(size, 2, operands)
    _gated_expand_program[(num_programs, operands.tiles.num_tiles)](
        gate_up,
        *operands.arguments(shrunk),
        num_blocks,
        out,
        **operands.constants(shrunk.shape[0]),
        SIZE=size,
        BLOCK_N=shape.block_n,
        NUM_STAGES=shape.num_stages,
        IS_SILU=is_silu,
        num_warps=shape.num_warps,
        num_stages=1,
    )
    return out


def _expand(y: Tensor, shrunk: Tensor, operands: Operands, is_in_place: bool) -> None:
    assert y.is_contiguous()
    sizes = operands.projection.out_features
    padded = [*sizes, 0, 0][:3]
    shape = _Shape.of(operands)
    num_programs, num_blocks = shape.shares(max(sizes), len(sizes), operands)
    _expand_program[(num_programs, operands.tiles.num_tiles, len(sizes))](
        y,
        *operands.arguments(shrunk),
        num_blocks,
        **operands.constants(shrunk.shape[0]),
        OUT_0=padded[0],
        OUT_1=padded[1],
        OUT_2=padded[2],
        BLOCK_N=shape.block_n,
        NUM_STAGES=shape.num_stages,
        IS_IN_PLACE=is_in_place,
        num_warps=shape.num_warps,
        num_stages=1,
    )


@dataclass(frozen=True, slots=True)
class _Shape:
    """Of programs that expand, by what they hold at once: a tile of tokens, all of the rank."""

    block_n: int
    """Columns at a time."""
    num_stages: int
    """Blocks of columns on their way."""
    num_warps: int

    @classmethod
    def of(cls, operands: Operands, gated: bool = False) -> _Shape:
        tile, rank = operands.tiles.tile_size, operands.storage_rank
        block_n = min(128, 8192 // rank)
        if gated and tile == MAX_TILE:
            block_n //= 2
        return cls(
            block_n,
            {16: 3, 32: 3, 64: 2}.get(rank, 1),
            4 if tile == MIN_TILE and rank < 64 else 8,
        )

    def shares(self, size: int, num_parts: int, operands: Operands) -> tuple[int, int]:
        """Programs for a part's columns, and how many blocks of them each takes."""
        num_blocks = triton.cdiv(size, self.block_n)
        num_programs = num_blocks * num_parts * operands.tiles.likely_tiles
        each = min(num_programs // _PROGRAMS, _MAX_BLOCKS)
        each = 1 << max(each.bit_length() - 1, 0)
        return triton.cdiv(num_blocks, each), each

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
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.activation import activated
from octavo.kernels.triton.adapter_operands import Operands, Shrunk, locate
from octavo.kernels.triton.overlap import wait_for_predecessors
from octavo.kernels.triton.pages import multiply

MAX_GATED_RANK = 64
"""Of both gate and up at once, in registers."""
_NO_SLOT = tl.constexpr(1 << 30)
"""Past all slots."""
_FEW_TOKENS = 256
_PROGRAMS = 512
"""So many at least, before one takes several blocks of columns."""


@triton.jit
def _tokens(order, slots, num_tokens, TILE: tl.constexpr):
    """A tile's places in the order, their tokens, and the tokens' slots: ascending."""
    places = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_token = places < num_tokens
    tokens = tl.load(order + places, mask=is_token, other=0)
    return places, is_token, tokens, tl.load(slots + places, mask=is_token, other=-1)


@triton.jit
def _next_slot(slots, slot):
    """The least of those in the tile that are greater."""
    return tl.min(tl.where(slots > slot, slots, _NO_SLOT), axis=0)


@triton.jit
def _inner(
    shrunk,
    stride,
    slots,
    places,
    is_token,
    tokens,
    num_tokens,
    part,
    MAX_RANK: tl.constexpr,
    SLOT_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    """A x of a tile's tokens for one part, ``[TILE, MAX_RANK]``; meaningless past a token's rank."""
    ranks = tl.arange(0, MAX_RANK)
    mask = (is_token & (slots >= 0))[:, None] & (ranks < SLOT_RANK)[None, :]
    if NUM_SPLITS == 0:
        begin = tokens * stride + (slots * NUM_PARTS + part) * SLOT_RANK
        total = tl.load(shrunk + begin[:, None] + ranks[None, :], mask=mask, other=0.0)
    else:
        source = shrunk + places[:, None] * stride + part * MAX_RANK + ranks[None, :]
        total = tl.zeros((TILE, MAX_RANK), tl.float32)
        for split in tl.static_range(NUM_SPLITS):
            total += tl.load(
                source + split * num_tokens.to(tl.int64) * stride, mask=mask, other=0.0
            )
    return total


@triton.jit
def _rows_of_b(
    b,
    table,
    slot,
    index,
    slot_stride,
    columns,
    is_column,
    MAX_RANK: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
):
    """A slot's ``[BLOCK_N, MAX_RANK]``, 0 past its rank, and the rank; zeros for no slot."""
    is_slot = slot < _NO_SLOT
    offset, rank = locate(table, tl.where(is_slot, slot, -1), index, NUM_PROJECTIONS)
    ranks = tl.arange(0, MAX_RANK)
    rows = tl.load(
        b + slot.to(tl.int64) * slot_stride + offset + columns[:, None] * rank + ranks[None, :],
        mask=is_column[:, None] & (ranks < rank)[None, :],
        other=0.0,
    )
    return rows, rank


@triton.jit
def _of_slot(inner, slots, slot, rank, MAX_RANK: tl.constexpr):
    """Of A x what an adapter's tokens have, and 0 for the others."""
    is_own = (slots == slot)[:, None] & (tl.arange(0, MAX_RANK) < rank)[None, :]
    return tl.where(is_own, inner, 0.0)


@triton.jit(do_not_specialize=["index", "num_tokens", "num_blocks"])
def _expand_program(
    y,
    b,
    table,
    order,
    sorted_slots,
    shrunk,
    index,
    num_tokens,
    slot_stride,
    shrunk_stride,
    y_stride,
    num_blocks,
    MAX_RANK: tl.constexpr,
    SLOT_RANK: tl.constexpr,
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
):
    """``y[token, n] += ...`` for one tile and ``num_blocks`` blocks of one part's columns."""
    places, is_token, tokens, slots = _tokens(order, sorted_slots, num_tokens, TILE)
    first_slot = _next_slot(slots, -1)
    part = tl.program_id(2)
    begin = (part > 0).to(tl.int32) * OUT_0 + (part > 1).to(tl.int32) * OUT_1
    size = tl.where(part == 0, OUT_0, tl.where(part == 1, OUT_1, OUT_2))
    first = tl.program_id(0) * num_blocks * BLOCK_N
    last = tl.where(first_slot < _NO_SLOT, tl.minimum(size, first + num_blocks * BLOCK_N), 0)
    wait_for_predecessors(OVERLAP)
    if first < last:
        inner = _inner(
            shrunk, shrunk_stride, slots, places, is_token, tokens, num_tokens, part,
            MAX_RANK, SLOT_RANK, NUM_PARTS, TILE, NUM_SPLITS,
        ).to(b.dtype.element_ty)  # fmt: skip
        for column in range(first, last, BLOCK_N):
            inside = column + tl.arange(0, BLOCK_N)
            is_column = inside < last
            mask = is_token[:, None] & is_column[None, :]
            pointers = y + tokens[:, None] * y_stride + (begin + inside)[None, :]
            total = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
            slot = first_slot
            rows, rank = _rows_of_b(
                b, table, slot, index, slot_stride, begin + inside, is_column,
                MAX_RANK, NUM_PROJECTIONS,
            )  # fmt: skip
            while slot < _NO_SLOT:
                own = _of_slot(inner, slots, slot, rank, MAX_RANK)
                slot = _next_slot(slots, slot)
                # The next adapter's come while this one's are multiplied.
                next_rows, rank = _rows_of_b(
                    b, table, slot, index, slot_stride, begin + inside, is_column,
                    MAX_RANK, NUM_PROJECTIONS,
                )  # fmt: skip
                total += multiply(own, tl.trans(rows), INTERPRETED)
                rows = next_rows
            tl.store(pointers, total.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["index", "num_tokens", "num_blocks"])
def _gated_expand_program(
    gate_up,
    b,
    table,
    order,
    sorted_slots,
    shrunk,
    index,
    num_tokens,
    slot_stride,
    shrunk_stride,
    gate_up_stride,
    num_blocks,
    out,
    MAX_RANK: tl.constexpr,
    SLOT_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OVERLAP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_SILU: tl.constexpr,
):
    """``out = activation(gate + ...) * (up + ...)`` for one tile and ``num_blocks`` blocks of
    columns; of tokens without an adapter too."""
    places, is_token, tokens, slots = _tokens(order, sorted_slots, num_tokens, TILE)
    first_slot = _next_slot(slots, -1)
    first = tl.program_id(0) * num_blocks * BLOCK_N
    last = tl.minimum(SIZE, first + num_blocks * BLOCK_N)
    wait_for_predecessors(OVERLAP)
    inner_gate = _inner(
        shrunk, shrunk_stride, slots, places, is_token, tokens, num_tokens, 0,
        MAX_RANK, SLOT_RANK, NUM_PARTS, TILE, NUM_SPLITS,
    ).to(b.dtype.element_ty)  # fmt: skip
    inner_up = _inner(
        shrunk, shrunk_stride, slots, places, is_token, tokens, num_tokens, 1,
        MAX_RANK, SLOT_RANK, NUM_PARTS, TILE, NUM_SPLITS,
    ).to(b.dtype.element_ty)  # fmt: skip
    for column in range(first, last, BLOCK_N):
        columns = column + tl.arange(0, BLOCK_N)
        is_column = columns < last
        mask = is_token[:, None] & is_column[None, :]
        pointers = gate_up + tokens[:, None] * gate_up_stride + columns[None, :]
        gate = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(pointers + SIZE, mask=mask, other=0.0).to(tl.float32)
        slot = first_slot
        gate_rows, rank = _rows_of_b(
            b, table, slot, index, slot_stride, columns, is_column, MAX_RANK, NUM_PROJECTIONS
        )
        up_rows, rank = _rows_of_b(
            b, table, slot, index, slot_stride, SIZE + columns, is_column,
            MAX_RANK, NUM_PROJECTIONS,
        )  # fmt: skip
        while slot < _NO_SLOT:
            own_gate = _of_slot(inner_gate, slots, slot, rank, MAX_RANK)
            own_up = _of_slot(inner_up, slots, slot, rank, MAX_RANK)
            slot = _next_slot(slots, slot)
            # The next adapter's come while this one's are multiplied.
            next_gate_rows, rank = _rows_of_b(
                b, table, slot, index, slot_stride, columns, is_column, MAX_RANK, NUM_PROJECTIONS
            )
            next_up_rows, rank = _rows_of_b(
                b, table, slot, index, slot_stride, SIZE + columns, is_column,
                MAX_RANK, NUM_PROJECTIONS,
            )  # fmt: skip
            gate += multiply(own_gate, tl.trans(gate_rows), INTERPRETED)
            up += multiply(own_up, tl.trans(up_rows), INTERPRETED)
            gate_rows, up_rows = next_gate_rows, next_up_rows
        result = (activated(gate, IS_SILU) * up).to(out.dtype.element_ty)
        tl.store(out + tokens[:, None] * SIZE + columns[None, :], result, mask=mask)


def expand(y: Tensor, shrunk: Shrunk, operands: Operands) -> None:
    """Add to ``y: [T, out_features]``, rows contiguous, in place."""
    assert y.stride(1) == 1
    sizes = operands.projection.out_features
    padded = [*sizes, 0, 0][:3]
    shape = _Shape.of(operands)
    num_blocks = shape.num_blocks(sum(sizes), operands)
    grid = (
        triton.cdiv(max(sizes), num_blocks * shape.block_n),
        shape.num_tiles(operands),
        len(sizes),
    )
    _expand_program[grid](
        y,
        *_arguments(operands, shrunk),
        y.stride(0),
        num_blocks,
        **_constants(operands, shrunk, shape),
        OUT_0=padded[0],
        OUT_1=padded[1],
        OUT_2=padded[2],
    )


def gated_expand(gate_up: Tensor, shrunk: Shrunk, operands: Operands, is_silu: bool) -> Tensor:
    """``gate_up: [T, 2 * size]``, rows contiguous → ``[T, size]``; up to :data:`MAX_GATED_RANK`."""
    assert gate_up.stride(1) == 1
    size = operands.projection.out_features[0]
    out = torch.empty(gate_up.shape[0], size, dtype=gate_up.dtype, device=gate_up.device)
    shape = _Shape.of(operands, is_gated=True)
    num_blocks = shape.num_blocks(size, operands)
    grid = (triton.cdiv(size, num_blocks * shape.block_n), shape.num_tiles(operands))
    _gated_expand_program[grid](
        gate_up,
        *_arguments(operands, shrunk),
        gate_up.stride(0),
        num_blocks,
        out,
        **_constants(operands, shrunk, shape),
        SIZE=size,
        IS_SILU=is_silu,
    )
    return out


def _arguments(operands: Operands, shrunk: Shrunk) -> tuple[Any, ...]:
    """Of both programs, after the product."""
    stack, tiles = operands.stack, operands.tiles
    return (
        stack.b,
        stack.table,
        tiles.order,
        tiles.slots,
        shrunk.values,
        operands.index,
        operands.num_tokens,
        stack.b.stride(0),
        shrunk.values.stride(-2),
    )


def _constants(operands: Operands, shrunk: Shrunk, shape: _Shape) -> dict[str, Any]:
    """Of both programs; and how they are launched."""
    return {
        **operands.constants(shrunk.num_splits),
        "TILE": shape.tile,
        "BLOCK_N": shape.block_n,
        "num_warps": shape.num_warps,
        "num_stages": 1,
    }


@dataclass(frozen=True, slots=True)
class _Shape:
    """Of programs that expand, by what they hold at once: a tile of tokens, all of the rank."""

    tile: int
    """Tokens, of any adapters."""
    block_n: int
    """Columns at a time."""
    each: int
    """Blocks of columns a program takes, if there are programs enough."""
    num_warps: int

    @classmethod
    def of(cls, operands: Operands, is_gated: bool = False) -> _Shape:
        rank = operands.storage_rank
        block_n = min(128, 8192 // rank)
        if operands.num_tokens <= _FEW_TOKENS or operands.tiles.is_uniform:
            return cls(16, min(64, block_n), 4, 4 if rank >= 64 else 2)
        return cls(64, block_n // 2 if is_gated else block_n, 4, 8)

    def num_tiles(self, operands: Operands) -> int:
        return triton.cdiv(operands.num_tokens, self.tile)

    def num_blocks(self, size: int, operands: Operands) -> int:
        """Of a program: fewer where there would be too few programs."""
        most = triton.cdiv(size, self.block_n) * self.num_tiles(operands) // _PROGRAMS
        return max(1, min(self.each, most))

"""LoRA's second half where adapters have a token or two each: B of what was shrunk, token by token.

Nothing is multiplied by more than one token, so there is no matrix product: a program holds its
rows of B in registers, where they are on their way before the product ahead has ended, and goes
over its adapter's tokens. Matrix instructions (:mod:`.adapter_expand`) would take the rows through
shared memory, in blocks, for tiles of 16 tokens of which most are not there.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.adapter_operands import (
    Operands,
    Shrunk,
    columns_of_part,
    locate,
    rows_of_b,
)
from octavo.kernels.triton.launch import ceil_div
from octavo.kernels.triton.overlap import wait_for_predecessors

MAX_RANK_BY_TOKEN = 32
"""Of the rows that a program holds in registers."""
_BLOCK_N = 256
"""Columns of a program."""


@triton.jit
def _inner_of_token(
    shrunk,
    stride,
    slot,
    place,
    token,
    num_tokens,
    rank,
    part,
    MAX_RANK: tl.constexpr,
    SLOT_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    """A x of one token for one part: ``[MAX_RANK]``."""
    ranks = tl.arange(0, MAX_RANK)
    mask = ranks < rank
    if NUM_SPLITS == 0:
        column = (slot * NUM_PARTS + part) * SLOT_RANK
        total = tl.load(shrunk + token * stride + column + ranks, mask=mask, other=0.0)
    else:
        source = shrunk + place * stride + part * MAX_RANK + ranks
        total = tl.zeros((MAX_RANK,), tl.float32)
        for split in tl.static_range(NUM_SPLITS):
            split_size = num_tokens.to(tl.int64) * stride
            total += tl.load(source + split * split_size, mask=mask, other=0.0)
    return total


@triton.jit(do_not_specialize=["index", "num_projections", "num_tokens", "num_tiles"])
def _expand_by_token_program(
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
):
    """``y[token, n] += ...`` for one tile and one block of one part's columns."""
    tile = tl.program_id(1)
    slot = tl.load(tiles + tile)
    first = tl.load(tiles + num_tiles + tile)
    offset, rank = locate(table, slot, index, num_projections)
    # Nothing is to be done for tokens without an adapter.
    count = tl.where(rank > 0, tl.load(tiles + 2 * num_tiles + tile), 0)
    BLOCKS_0: tl.constexpr = (OUT_0 + BLOCK_N - 1) // BLOCK_N
    BLOCKS_1: tl.constexpr = (OUT_1 + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0)
    part = (block >= BLOCKS_0).to(tl.int32) + (block >= BLOCKS_0 + BLOCKS_1).to(tl.int32)
    begin, size = columns_of_part(part, OUT_0, OUT_1, OUT_2)
    block -= (part > 0).to(tl.int32) * BLOCKS_0 + (part > 1).to(tl.int32) * BLOCKS_1
    inside = block * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = inside < size
    columns = begin + inside
    matrix = b + slot * slot_stride + offset
    # On their way before the wait: adapters are there long before.
    rows = rows_of_b(matrix, columns, is_column & (count > 0), rank, MAX_RANK)
    wait_for_predecessors(OVERLAP)
    for place in range(first, first + count):
        token = tl.load(order + place)
        pointers = y + token * y_stride + columns
        before = tl.load(pointers, mask=is_column, other=0.0).to(tl.float32)
        inner = _inner_of_token(
            shrunk, shrunk_stride, slot, place, token, num_tokens, rank, part,
            MAX_RANK, SLOT_RANK, NUM_PARTS, NUM_SPLITS,
        ).to(b.dtype.element_ty)  # fmt: skip
        added = tl.sum(rows.to(tl.float32) * inner.to(tl.float32)[None, :], axis=1)
        tl.store(pointers, (before + added).to(y.dtype.element_ty), mask=is_column)


def expand_by_token(y: Tensor, shrunk: Shrunk, operands: Operands) -> None:
    """Add to ``y: [T, out_features]``, rows contiguous, in place."""
    assert y.stride(1) == 1
    sizes = operands.projection.out_features
    num_blocks = sum(ceil_div(size, _BLOCK_N) for size in sizes)
    _expand_by_token_program[(num_blocks, operands.tiles.num_tiles)](
        y,
        *operands.expand_arguments(shrunk),
        y.stride(0),
        **operands.constants(shrunk.num_splits),
        **operands.part_sizes,
        BLOCK_N=_BLOCK_N,
        num_warps=4,
    )

"""LoRA's second half: B of what was shrunk, for every token of a step at once.

Three ways to leave it: added to the product in place; by itself, for whoever reads the product
next; or added to gate and up by the activation, which reads them anyway.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.activation import activated
from octavo.kernels.triton.adapter_operands import Operands, locate, tokens_of_tile
from octavo.kernels.triton.pages import multiply

_BLOCK_N = 128
_FEW_TOKENS_BLOCK_N = 256
_GATED_BLOCK_N = {16: 128, 32: 128, 64: 64}
"""By tile: two sums are held at once."""


@triton.jit
def _added(
    shrunk,
    matrix,
    first,
    places,
    is_token,
    columns,
    is_column,
    num_tokens,
    rank,
    part,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """What an adapter adds to ``columns`` of one part: ``[TILE, BLOCK_N], float32``."""
    width: tl.constexpr = NUM_PARTS * MAX_RANK
    total = tl.zeros((TILE, BLOCK_N), tl.float32)
    # Nothing to read ahead: nearly all adapters are one block wide.
    for block in tl.range(0, rank, BLOCK_R, num_stages=1):
        ranks = block + tl.arange(0, BLOCK_R)
        is_rank = ranks < rank
        source = shrunk + (first + places[:, None]) * width + part * MAX_RANK + ranks[None, :]
        inner = tl.zeros((TILE, BLOCK_R), tl.float32)
        for split in tl.static_range(NUM_SPLITS):
            inner += tl.load(
                source + split * num_tokens.to(tl.int64) * width,
                mask=is_token[:, None] & is_rank[None, :],
                other=0.0,
            )
        rows = tl.load(
            matrix + columns[:, None] * rank + ranks[None, :],
            mask=is_column[:, None] & is_rank[None, :],
            other=0.0,
        )
        total += multiply(inner.to(rows.dtype), tl.trans(rows), INTERPRETED)
    return total


@triton.jit(do_not_specialize=["index", "num_tokens", "num_tiles"])
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
    IN: tl.constexpr,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OUT_0: tl.constexpr,
    OUT_1: tl.constexpr,
    OUT_2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_IN_PLACE: tl.constexpr,
):
    """``y[token, n] += ...`` for one tile and one block of one part's columns; where not in place,
    ``y[token, n] = ...``, for tokens without an adapter too."""
    tile = tl.program_id(1)
    if tl.load(tiles + 2 * num_tiles + tile) == 0:
        return
    slot = tl.load(tiles + tile)
    # Slot 0 is there even where none is meant.
    offset, rank = locate(table, tl.maximum(slot, 0), index, NUM_PROJECTIONS)
    rank = tl.multiple_of(tl.where(slot < 0, 0, rank), 16)
    if IS_IN_PLACE:  # noqa: SIM102  known when compiled, unlike the next
        if rank == 0:
            return
    first, places, is_token, tokens = tokens_of_tile(order, tiles, num_tiles, tile, TILE)
    blocks_0: tl.constexpr = (OUT_0 + BLOCK_N - 1) // BLOCK_N
    blocks_1: tl.constexpr = (OUT_1 + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0)
    past_0 = (block >= blocks_0).to(tl.int32)
    past_1 = (block >= blocks_0 + blocks_1).to(tl.int32)
    part = past_0 + past_1
    begin = past_0 * OUT_0 + past_1 * OUT_1
    size = OUT_0 + past_0 * (OUT_1 - OUT_0) + past_1 * (OUT_2 - OUT_1)
    block -= past_0 * blocks_0 + past_1 * blocks_1
    inside = block * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = inside < size
    columns = begin + inside
    matrix = storage + slot * slot_stride + offset + NUM_PARTS * IN * rank
    result = _added(
        shrunk, matrix, first, places, is_token, columns, is_column, num_tokens, rank, part,
        MAX_RANK, NUM_PARTS, TILE, BLOCK_N, BLOCK_R, NUM_SPLITS, INTERPRETED,
    )  # fmt: skip
    out: tl.constexpr = OUT_0 + OUT_1 + OUT_2
    pointers = y + tokens[:, None] * out + columns[None, :]
    mask = is_token[:, None] & is_column[None, :]
    if IS_IN_PLACE:
        result += tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    tl.store(pointers, result.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["index", "num_tokens", "num_tiles"])
def _gated_expand_program(
    gate_up,
    out,
    storage,
    table,
    order,
    tiles,
    shrunk,
    index,
    num_tokens,
    num_tiles,
    slot_stride,
    IN: tl.constexpr,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_SILU: tl.constexpr,
):
    """``out = activation(gate + ...) * (up + ...)``; tiles of tokens without an adapter too."""
    tile = tl.program_id(1)
    if tl.load(tiles + 2 * num_tiles + tile) == 0:
        return
    slot = tl.load(tiles + tile)
    first, places, is_token, tokens = tokens_of_tile(order, tiles, num_tiles, tile, TILE)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = columns < SIZE
    mask = is_token[:, None] & is_column[None, :]
    pointers = gate_up + tokens[:, None] * (2 * SIZE) + columns[None, :]
    gate = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(pointers + SIZE, mask=mask, other=0.0).to(tl.float32)
    if slot >= 0:
        offset, rank = locate(table, slot, index, NUM_PROJECTIONS)
        matrix = storage + slot * slot_stride + offset + 2 * IN * rank
        gate += _added(
            shrunk, matrix, first, places, is_token, columns, is_column, num_tokens, rank, 0,
            MAX_RANK, NUM_PARTS, TILE, BLOCK_N, BLOCK_R, NUM_SPLITS, INTERPRETED,
        )  # fmt: skip
        up += _added(
            shrunk, matrix, first, places, is_token, columns + SIZE, is_column, num_tokens, rank, 1,
            MAX_RANK, NUM_PARTS, TILE, BLOCK_N, BLOCK_R, NUM_SPLITS, INTERPRETED,
        )  # fmt: skip
    target = out + tokens[:, None] * SIZE + columns[None, :]
    tl.store(target, (activated(gate, IS_SILU) * up).to(out.dtype.element_ty), mask=mask)


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
    """``gate_up: [T, 2 * size]``, contiguous → ``[T, size]``."""
    size = operands.projection.out_features[0]
    assert gate_up.is_contiguous()
    out = torch.empty(gate_up.shape[0], size, dtype=gate_up.dtype, device=gate_up.device)
    block_n = _GATED_BLOCK_N[operands.tiles.tile_size]
    _gated_expand_program[(triton.cdiv(size, block_n), operands.tiles.num_tiles)](
        gate_up,
        out,
        *operands.arguments(shrunk),
        **operands.constants(shrunk.shape[0]),
        SIZE=size,
        BLOCK_N=block_n,
        IS_SILU=is_silu,
        num_warps=operands.num_warps,
        num_stages=1,
    )
    return out


def _expand(y: Tensor, shrunk: Tensor, operands: Operands, is_in_place: bool) -> None:
    assert y.is_contiguous()
    sizes = [*operands.projection.out_features, 0, 0][:3]
    block_n = _FEW_TOKENS_BLOCK_N if operands.is_small else _BLOCK_N
    blocks = sum(triton.cdiv(size, block_n) for size in sizes)
    _expand_program[(blocks, operands.tiles.num_tiles)](
        y,
        *operands.arguments(shrunk),
        **operands.constants(shrunk.shape[0]),
        OUT_0=sizes[0],
        OUT_1=sizes[1],
        OUT_2=sizes[2],
        BLOCK_N=block_n,
        IS_IN_PLACE=is_in_place,
        num_warps=operands.num_warps,
        num_stages=1,
    )

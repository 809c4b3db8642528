"""LoRA's second half: B of what was shrunk, for every token of a step at once.

Three ways to leave it: added to the product in place; by itself, for whoever reads the product
next; or added to gate and up by the activation, which reads them anyway. A program finds its tile,
tokens and matrix once and then goes over several blocks of columns, those to come on their way
while it works.
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
from octavo.kernels.triton.pages import multiply_add

_BLOCK_N = 128
_GATED_BLOCK_N = {16: 128, 32: 128, 64: 64}
"""By tile: two sums are held at once."""
_PROGRAMS = 512
"""So many at least, before one takes several blocks of columns."""
_MAX_BLOCKS = 8


@triton.jit
def _added(
    shrunk,
    matrix,
    first,
    places,
    is_token,
    columns,
    is_column,
    rank,
    part,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """What an adapter adds to ``columns`` of one part: ``[TILE, BLOCK_N], float32``."""
    width: tl.constexpr = NUM_PARTS * MAX_RANK
    total = tl.zeros((TILE, BLOCK_N), tl.float32)
    for begin in tl.static_range(0, MAX_RANK, BLOCK_R):
        ranks = begin + tl.arange(0, BLOCK_R)
        is_rank = ranks < rank
        inner = tl.load(
            shrunk + (first + places[:, None]) * width + part * MAX_RANK + ranks[None, :],
            mask=is_token[:, None] & is_rank[None, :],
            other=0.0,
        )
        rows = tl.load(
            matrix + columns[:, None] * rank + ranks[None, :],
            mask=is_column[:, None] & is_rank[None, :],
            other=0.0,
        )
        total = multiply_add(inner, tl.trans(rows), total, INTERPRETED)
    return total


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
    BLOCK_R: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OUT_0: tl.constexpr,
    OUT_1: tl.constexpr,
    OUT_2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    IS_IN_PLACE: tl.constexpr,
):
    """``y[token, n] += ...`` for one tile and ``num_blocks`` blocks of columns; where not
    in place, ``y[token, n] = ...``, for tokens without an adapter too."""
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
    matrix = storage + slot * slot_stride + offset + NUM_PARTS * IN * rank
    blocks_0: tl.constexpr = (OUT_0 + BLOCK_N - 1) // BLOCK_N
    blocks_1: tl.constexpr = (OUT_1 + BLOCK_N - 1) // BLOCK_N
    out: tl.constexpr = OUT_0 + OUT_1 + OUT_2
    for step in tl.range(0, num_blocks, num_stages=NUM_STAGES):
        block = tl.program_id(0) * num_blocks + step
        past_0 = (block >= blocks_0).to(tl.int32)
        past_1 = (block >= blocks_0 + blocks_1).to(tl.int32)
        begin = past_0 * OUT_0 + past_1 * OUT_1
        # Of a block past the last part's nothing is inside.
        size = OUT_0 + past_0 * (OUT_1 - OUT_0) + past_1 * (OUT_2 - OUT_1)
        inside = (block - past_0 * blocks_0 - past_1 * blocks_1) * BLOCK_N + tl.arange(0, BLOCK_N)
        is_column = inside < size
        columns = begin + inside
        pointers = y + tokens[:, None] * out + columns[None, :]
        mask = is_token[:, None] & is_column[None, :]
        result = _added(
            shrunk, matrix, first, places, is_token, columns, is_column, rank, past_0 + past_1,
            MAX_RANK, NUM_PARTS, TILE, BLOCK_N, BLOCK_R, INTERPRETED,
        )  # fmt: skip
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
    BLOCK_R: tl.constexpr,
    INTERPRETED: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    IS_SILU: tl.constexpr,
):
    """``out = activation(gate + ...) * (up + ...)`` for one tile and ``num_blocks`` blocks of
    columns; tiles of tokens without an adapter too."""
    tile = tl.program_id(1)
    if tl.load(tiles + 2 * num_tiles + tile) == 0:
        return
    slot = tl.load(tiles + tile)
    offset, rank = locate(table, tl.maximum(slot, 0), index, NUM_PROJECTIONS)
    rank = tl.multiple_of(tl.where(slot < 0, 0, rank), 16)
    first, places, is_token, tokens = tokens_of_tile(order, tiles, num_tiles, tile, TILE)
    matrix = storage + slot * slot_stride + offset + 2 * IN * rank
    for step in tl.range(0, num_blocks, num_stages=NUM_STAGES):
        block = tl.program_id(0) * num_blocks + step
        columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
        is_column = columns < SIZE
        mask = is_token[:, None] & is_column[None, :]
        pointers = gate_up + tokens[:, None] * (2 * SIZE) + columns[None, :]
        gate = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(pointers + SIZE, mask=mask, other=0.0).to(tl.float32)
        gate += _added(
            shrunk, matrix, first, places, is_token, columns, is_column, rank, 0,
            MAX_RANK, NUM_PARTS, TILE, BLOCK_N, BLOCK_R, INTERPRETED,
        )  # fmt: skip
        up += _added(
            shrunk, matrix, first, places, is_token, columns + SIZE, is_column, rank, 1,
            MAX_RANK, NUM_PARTS, TILE, BLOCK_N, BLOCK_R, INTERPRETED,
        )  # fmt: skip
        target = out + tokens[:, None] * SIZE + columns[None, :]
        tl.store(target, (activated(gate, IS_SILU) * up).to(out.dtype.element_ty), mask=mask)


def expand(y: Tensor, shrunk: Tensor, operands: Operands) -> None:
    """Add to ``y: [T, out_features]``, contiguous, in place."""
    _expand(y, shrunk, operands, is_in_place=True)


def expanded(shrunk: Tensor, operands: Operands) -> Tensor:
    """What is to be added to the product: ``[T, out_features]``; 0 where there is no adapter."""
    width = sum(operands.projection.out_features)
    added = torch.empty(operands.num_tokens, width, dtype=shrunk.dtype, device=shrunk.device)
    _expand(added, shrunk, operands, is_in_place=False)
    return added


def gated_expand(gate_up: Tensor, shrunk: Tensor, operands: Operands, is_silu: bool) -> Tensor:
    """``gate_up: [T, 2 * size]``, contiguous → ``[T, size]``."""
    size = operands.projection.out_features[0]
    assert gate_up.is_contiguous()
    out = torch.empty(gate_up.shape[0], size, dtype=gate_up.dtype, device=gate_up.device)
    block_n = _GATED_BLOCK_N[operands.tiles.tile_size]
    num_programs, num_blocks = _shares(triton.cdiv(size, block_n), operands)
    _gated_expand_program[(num_programs, operands.tiles.num_tiles)](
        gate_up,
        *operands.arguments(shrunk),
        num_blocks,
        out,
        **operands.constants,
        SIZE=size,
        BLOCK_N=block_n,
        NUM_STAGES=_num_stages(operands),
        IS_SILU=is_silu,
        num_warps=operands.num_warps,
        num_stages=1,
    )
    return out


def _expand(y: Tensor, shrunk: Tensor, operands: Operands, is_in_place: bool) -> None:
    assert y.is_contiguous()
    sizes = [*operands.projection.out_features, 0, 0][:3]
    num_programs, num_blocks = _shares(sum(triton.cdiv(size, _BLOCK_N) for size in sizes), operands)
    _expand_program[(num_programs, operands.tiles.num_tiles)](
        y,
        *operands.arguments(shrunk),
        num_blocks,
        **operands.constants,
        OUT_0=sizes[0],
        OUT_1=sizes[1],
        OUT_2=sizes[2],
        BLOCK_N=_BLOCK_N,
        NUM_STAGES=_num_stages(operands),
        IS_IN_PLACE=is_in_place,
        num_warps=operands.num_warps,
        num_stages=1,
    )


def _num_stages(operands: Operands) -> int:
    """Blocks on their way at once, by what shared memory holds."""
    return {16: 3, 32: 3, 64: 2}.get(operands.storage_rank, 1)


def _shares(num_blocks: int, operands: Operands) -> tuple[int, int]:
    """Programs of a tile, and how many of the blocks of columns each takes."""
    each = min(num_blocks * operands.tiles.likely_tiles // _PROGRAMS, _MAX_BLOCKS)
    each = 1 << max(each.bit_length() - 1, 0)
    return triton.cdiv(num_blocks, each), each

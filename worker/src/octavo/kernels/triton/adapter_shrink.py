"""LoRA's first half for every token of a step at once: A x, by tiles of one adapter each.

Programs wait for memory and little else, so each asks for much at a time and goes few rounds: the
input is split over many, and the last of a tile to be done adds up what all found, in their order.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.adapter_operands import Operands, locate, tokens_of_tile
from octavo.kernels.triton.pages import multiply

_SPLITS = {16: 16, 32: 8, 64: 4}
"""By tile: how often the input is split at most."""
_BLOCK_K = {16: 256, 32: 256, 64: 128}


@triton.jit(do_not_specialize=["index", "num_tokens", "num_tiles"])
def _shrink_program(
    x,
    storage,
    table,
    order,
    tiles,
    shrunk,
    index,
    num_tokens,
    num_tiles,
    slot_stride,
    partial,
    arrivals,
    x_stride,
    IN: tl.constexpr,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    INTERPRETED: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``shrunk[token in order, part * MAX_RANK + r]`` for one tile and block of a part's rank; this
    program for one share of the input."""
    tile = tl.program_id(1)
    slot = tl.load(tiles + tile)
    if slot < 0:
        return
    offset, rank = locate(table, slot, index, NUM_PROJECTIONS)
    blocks_of_part: tl.constexpr = MAX_RANK // BLOCK_R
    part = tl.program_id(0) // blocks_of_part
    ranks = (tl.program_id(0) % blocks_of_part) * BLOCK_R + tl.arange(0, BLOCK_R)
    if (tl.program_id(0) % blocks_of_part) * BLOCK_R >= rank:
        return
    first, places, is_token, tokens = tokens_of_tile(order, tiles, num_tiles, tile, TILE)
    split = tl.program_id(2)
    blocks_of_split: tl.constexpr = (IN + BLOCK_K * NUM_SPLITS - 1) // (BLOCK_K * NUM_SPLITS)
    columns = split * blocks_of_split * BLOCK_K + tl.arange(0, BLOCK_K)
    matrix = storage + slot * slot_stride + offset + part.to(tl.int64) * rank * IN
    x_pointers = x + tokens[:, None] * x_stride + columns[None, :]
    a_pointers = matrix + ranks[:, None] * IN + columns[None, :]
    total = tl.zeros((TILE, BLOCK_R), tl.float32)
    for step in range(blocks_of_split):
        is_column = columns + step * BLOCK_K < IN
        values = tl.load(
            x_pointers + step * BLOCK_K, mask=is_token[:, None] & is_column[None, :], other=0.0
        )
        rows = tl.load(
            a_pointers + step * BLOCK_K,
            mask=(ranks < rank)[:, None] & is_column[None, :],
            other=0.0,
        )
        total += multiply(values, tl.trans(rows), INTERPRETED)
    width: tl.constexpr = NUM_PARTS * MAX_RANK
    target = (first + places[:, None]) * width + part * MAX_RANK + ranks[None, :]
    if NUM_SPLITS > 1:
        of_split = num_tokens.to(tl.int64) * width
        tl.store(partial + split * of_split + target, total, mask=is_token[:, None])
        arrival = arrivals + tile * tl.num_programs(0) + tl.program_id(0)
        # The barrier orders all threads' stores before the one thread that releases them.
        tl.debug_barrier()
        if tl.atomic_add(arrival, 1, sem="acq_rel", scope="gpu") < NUM_SPLITS - 1:
            return
        total = tl.zeros((TILE, BLOCK_R), tl.float32)
        for other in tl.static_range(NUM_SPLITS):
            total += tl.load(
                partial + other * of_split + target,
                mask=is_token[:, None],
                other=0.0,
                cache_modifier=".cg",
            )
        tl.store(arrival, 0)
    tl.store(shrunk + target, total.to(shrunk.dtype.element_ty), mask=is_token[:, None])


def shrink(x: Tensor, operands: Operands, arrivals: Tensor) -> Tensor:
    """``x: [T, in_features]``, rows contiguous → ``[T, parts * storage_rank]``, in the order of the
    tiles and the dtype of x. Undefined where there is no adapter.

    ``arrivals: [MAX_ARRIVALS], int32``, zeros: counters of the programs that share a tile, zeros
    again afterwards.
    """
    num_parts, rank = len(operands.projection.names), operands.storage_rank
    num_tokens, width = operands.num_tokens, num_parts * rank
    block_k, num_splits = _shares(operands)
    shrunk = torch.empty(num_tokens, width, dtype=x.dtype, device=x.device)
    partial = shrunk
    if num_splits > 1:
        shape = (num_splits, num_tokens, width)
        partial = torch.empty(shape, dtype=torch.float32, device=x.device)
    blocks = num_parts * (rank // operands.rank_block)
    assert blocks * operands.tiles.num_tiles <= arrivals.numel(), "a step has too many tiles"
    _shrink_program[(blocks, operands.tiles.num_tiles, num_splits)](
        x,
        *operands.arguments(shrunk),
        partial,
        arrivals,
        x.stride(0),
        **operands.constants,
        NUM_SPLITS=num_splits,
        BLOCK_K=block_k,
        num_warps=4,
        num_stages=3,
    )
    return shrunk


def _shares(operands: Operands) -> tuple[int, int]:
    """Columns at a time, and shares of the input: a power of two, so that few programs are
    compiled, and no more than give each two blocks."""
    tile_size = operands.tiles.tile_size
    block_k = _BLOCK_K[tile_size]
    most = min(_SPLITS[tile_size], max(1, operands.projection.in_features // (2 * block_k)))
    return block_k, 1 << (most.bit_length() - 1)

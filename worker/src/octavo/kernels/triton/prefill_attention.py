"""Attention of several new tokens per sequence over its pages, cached prefix included.

Bound by arithmetic. Sequences of any length are packed into tiles of equal size: the grid is
bounded by numbers the host knows, and each program finds its sequence by bisection. The query
heads that share a KV head stand side by side in one tile, so a tile is ``BLOCK_QUERIES`` tokens
of ``GROUP_SIZE`` heads.

A sequence's new keys and values lie in one piece in the step's QKV product, from where the copy
engine brings whole tiles; only those of earlier steps are gathered from pages. On an H100 that
takes 549 us for two prompts of 4096 tokens of the 8B's shape, and gathering all of them 788.

Source: Dao, "FlashAttention-2: faster attention with better parallelism" (2023).
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.interface import AttentionBatch
from octavo.kernels.triton.launch import INTERPRETED, Machine, next_power_of_two
from octavo.kernels.triton.overlap import wait_for_predecessors
from octavo.kernels.triton.pages import load_rows, locate_tokens, multiply, multiply_add

_MIN_NEW_TILE_QUERIES = 256
"""Shorter prompts have few keys of their own: larger groups of warps on pages serve them better."""


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """How prefill programs are shaped; the table below chooses by head size and dtype."""

    block_rows: int
    """Rows of a tile: tokens times the query heads that share a KV head."""
    block_tokens: int
    """Keys of a tile."""
    num_warps: int
    num_stages: int


def prefill_config(
    head_dim: int, group_size: int, element_bytes: int, has_warpgroup_products: bool
) -> PrefillConfig:
    """The shape for a head size, a number of query heads per KV head, and q's element size.

    None of them spills registers, except float32 with heads of 256.
    """
    min_rows = max(16, next_power_of_two(group_size))
    if element_bytes == 4:  # no matrix instruction keeps float32's bits; small tiles in registers
        if head_dim <= 128:
            return PrefillConfig(max(32, min_rows), 32, 8, 2)
        return PrefillConfig(min_rows, 16, 8, 1)
    if not has_warpgroup_products:
        if head_dim <= 128:
            return PrefillConfig(max(128, min_rows), 64, 8, 3)
        return PrefillConfig(max(64, min_rows), 32, 8, 3)
    if head_dim <= 64:
        return PrefillConfig(max(128, min_rows), 128, 8, 3)
    if head_dim <= 128:
        return PrefillConfig(max(128, min_rows), 64, 8, 5)
    return PrefillConfig(max(128, min_rows), 32, 8, 3)


def new_tiles_config(head_dim: int, group_size: int) -> PrefillConfig:
    """The shape where new keys come through the copy engine: one group of four warps a tile."""
    min_rows = max(64, next_power_of_two(group_size))
    if head_dim <= 128:
        return PrefillConfig(max(128, min_rows), 64, 4, 2)
    return PrefillConfig(min_rows, 32, 4, 2)


@triton.jit
def _find_sequence(query_starts, first_sequence, num_sequences, tile, BLOCK_QUERIES: tl.constexpr):
    """The sequence of a tile, and the tile's number in it.

    Sequence i (from ``first_sequence``) has its tiles from ``start // BLOCK_QUERIES + i`` on:
    always room enough, and monotonic, so no table is needed. Some tiles stay empty.
    """
    origin = tl.load(query_starts + first_sequence)
    low = first_sequence * 0
    high = num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        start = tl.load(query_starts + first_sequence + middle) - origin
        is_before = start // BLOCK_QUERIES + middle <= tile
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle)
    start = tl.load(query_starts + first_sequence + low) - origin
    return first_sequence + low, tile - (start // BLOCK_QUERIES + low)


@triton.jit
def _attend_tile(
    queries,
    positions,
    key_cache,
    value_cache,
    table,
    first,
    begin_seen,
    end,
    kv_head,
    key_block_stride,
    value_block_stride,
    score_scale,
    largest,
    total,
    result,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    MASKED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One step of the online softmax over keys ``first : first + BLOCK_TOKENS``.

    Scores are scaled where the maximum is subtracted, so that the two are one instruction whether
    masked or not: which of the two a tile is depends on the chunk that a query came in, and its
    bits must not.
    """
    tokens = first + tl.arange(0, BLOCK_TOKENS)
    dims = tl.arange(0, BLOCK_DIM)
    mask = tokens < end
    if WINDOW > 0:
        mask = mask & (tokens >= begin_seen)
    blocks, offsets = locate_tokens(table, tokens, mask, kv_head, HEAD_DIM, BLOCK_SIZE, MASKED)
    key_rows = key_cache + blocks * key_block_stride + offsets
    value_rows = value_cache + blocks * value_block_stride + offsets
    keys = load_rows(key_rows, mask, dims, HEAD_DIM, BLOCK_DIM, MASKED)
    values = load_rows(value_rows, mask, dims, HEAD_DIM, BLOCK_DIM, MASKED)
    scores = multiply(queries, tl.trans(keys.to(queries.dtype)), INTERPRETED)
    if MASKED:
        visible = mask[None, :] & (tokens[None, :] <= positions[:, None])
        if WINDOW > 0:
            visible = visible & (positions[:, None] - tokens[None, :] < WINDOW)
        scores = tl.where(visible, scores, -float("inf"))
    new_largest = tl.maximum(largest, tl.max(scores, axis=1) * score_scale)
    base = new_largest
    if MASKED:
        # A row may see nothing of this tile, nor of those before it.
        base = tl.where(new_largest == -float("inf"), 0.0, new_largest)
    weights = tl.exp2(scores * score_scale - base[:, None])
    carried = tl.exp2(largest - base)
    total = total * carried + tl.sum(weights, axis=1)
    result = multiply_add(
        weights.to(queries.dtype), values.to(queries.dtype), result * carried[:, None], INTERPRETED
    )
    return new_largest, total, result


@triton.jit
def _attend_new_tile(
    queries,
    positions,
    key_tiles,
    value_tiles,
    first,
    first_row,
    column,
    num_cached,
    score_scale,
    largest,
    total,
    result,
    BLOCK_TOKENS: tl.constexpr,
    MASKED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One step of the online softmax over the sequence's new keys from number ``first`` on.

    Past the sequence's end lie tokens of others, which no row sees.
    """
    keys = key_tiles.load([first_row + first, column])
    scores = multiply(queries, tl.trans(keys), INTERPRETED)
    if MASKED:
        tokens = num_cached + first + tl.arange(0, BLOCK_TOKENS)
        scores = tl.where(tokens[None, :] <= positions[:, None], scores, -float("inf"))
    # Every row sees the first new key of its sequence, so the maximum is finite.
    new_largest = tl.maximum(largest, tl.max(scores, axis=1) * score_scale)
    weights = tl.exp2(scores * score_scale - new_largest[:, None])
    carried = tl.exp2(largest - new_largest)
    total = total * carried + tl.sum(weights, axis=1)
    values = value_tiles.load([first_row + first, column])
    result = result * carried[:, None]
    return new_largest, total, multiply_add(weights.to(queries.dtype), values, result, INTERPRETED)


@triton.jit(
    do_not_specialize=["first_sequence", "num_sequences", "table_stride"],
    do_not_specialize_on_alignment=["query_starts", "context_lens", "block_tables"],
)
def _prefill_program(
    q,
    key_cache,
    value_cache,
    out,
    query_starts,
    context_lens,
    block_tables,
    key_tiles,
    value_tiles,
    first_sequence,
    num_sequences,
    q_stride,
    table_stride,
    key_block_stride,
    value_block_stride,
    score_scale,
    value_scale,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    HAS_NEW_TILES: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program for one tile of queries and one KV head."""
    kv_head = tl.program_id(0)
    # The last tiles of a sequence see most keys: start them first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    wait_for_predecessors(OVERLAP)
    sequence, tile = _find_sequence(
        query_starts, first_sequence, num_sequences, tile, BLOCK_QUERIES
    )
    start = tl.load(query_starts + sequence)
    num_queries = tl.load(query_starts + sequence + 1) - start
    first_query = tile * BLOCK_QUERIES
    if first_query < num_queries:
        num_cached = tl.load(context_lens + sequence) - num_queries
        rows = tl.arange(0, BLOCK_ROWS)
        dims = tl.arange(0, BLOCK_DIM)
        tile_queries = first_query + rows // GROUP_SIZE
        row_mask = (rows < BLOCK_QUERIES * GROUP_SIZE) & (tile_queries < num_queries)
        inside = row_mask[:, None] & (dims < HEAD_DIM)[None, :]
        tokens = (start + tile_queries).to(tl.int64)
        heads = kv_head * GROUP_SIZE + rows % GROUP_SIZE
        q_rows = tokens * q_stride + heads * HEAD_DIM
        queries = tl.load(q + q_rows[:, None] + dims[None, :], mask=inside, other=0.0)
        positions = num_cached + tile_queries
        first_position = num_cached + first_query
        # Keys 0 : clear are seen by every row, keys clear : end by some.
        end = num_cached + tl.minimum(first_query + BLOCK_QUERIES, num_queries)
        begin_seen = first_position * 0
        clear = (first_position + 1) // BLOCK_TOKENS * BLOCK_TOKENS
        if HAS_NEW_TILES:
            # Of the pages all that is older, seen by every row; the last tile of it is masked.
            clear = num_cached // BLOCK_TOKENS * BLOCK_TOKENS
            end = num_cached
        if WINDOW > 0:
            # With a window every tile is masked; what lies before it may be anything.
            begin_seen = tl.maximum(first_position - WINDOW + 1, 0)
            # Whole tiles, so that a row is summed alike whatever chunk it came in.
            clear = begin_seen // BLOCK_TOKENS * BLOCK_TOKENS
        table = block_tables + sequence.to(tl.int64) * table_stride
        largest = tl.full([BLOCK_ROWS], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK_ROWS], tl.float32)
        result = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
        if WINDOW == 0:
            for first in range(0, clear, BLOCK_TOKENS):
                largest, total, result = _attend_tile(
                    queries, positions, key_cache, value_cache, table, first, begin_seen, end,
                    kv_head, key_block_stride, value_block_stride, score_scale,
                    largest, total, result,
                    HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_DIM, BLOCK_TOKENS, False, INTERPRETED,
                )  # fmt: skip
        for first in range(clear, end, BLOCK_TOKENS):
            largest, total, result = _attend_tile(
                queries, positions, key_cache, value_cache, table, first, begin_seen, end, kv_head,
                key_block_stride, value_block_stride, score_scale, largest, total, result,
                HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_DIM, BLOCK_TOKENS, True, INTERPRETED,
            )  # fmt: skip
        if HAS_NEW_TILES:
            clear = (first_query + 1) // BLOCK_TOKENS * BLOCK_TOKENS
            end = tl.minimum(first_query + BLOCK_QUERIES, num_queries)
            column = kv_head * HEAD_DIM
            for first in range(0, clear, BLOCK_TOKENS):
                largest, total, result = _attend_new_tile(
                    queries, positions, key_tiles, value_tiles, first, start, column, num_cached,
                    score_scale, largest, total, result, BLOCK_TOKENS, False, INTERPRETED,
                )  # fmt: skip
            for first in range(clear, end, BLOCK_TOKENS):
                largest, total, result = _attend_new_tile(
                    queries, positions, key_tiles, value_tiles, first, start, column, num_cached,
                    score_scale, largest, total, result, BLOCK_TOKENS, True, INTERPRETED,
                )  # fmt: skip
        result = result * value_scale / tl.where(total == 0.0, 1.0, total)[:, None]
        out_rows = tokens * NUM_KV_HEADS * GROUP_SIZE * HEAD_DIM + heads * HEAD_DIM
        pointers = out + out_rows[:, None] + dims[None, :]
        tl.store(pointers, result.to(out.dtype.element_ty), mask=inside)


def prefill_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    out: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    machine: Machine,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    config: PrefillConfig | None = None,
    qkv: Tensor | None = None,
) -> None:
    """Write the outputs of all tokens past the batch's first ``num_decodes`` sequences.

    ``q, out: [T, num_heads, head_dim]``; q's heads are contiguous, ``out`` wholly so. Tokens of
    no sequence are not written. Values in the cache are multiplied by the scales (FP8 caches).
    ``qkv``: the product that q is part of, with this step's keys rotated in place.
    """
    first_sequence = batch.num_decodes
    num_sequences = batch.context_lens.shape[0] - first_sequence
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    group_size = q.shape[1] // num_kv_heads
    new_rows = None
    if batch.max_query_len >= _MIN_NEW_TILE_QUERIES:
        new_rows = _new_rows(qkv, q, key_cache, window, machine)
    if config is None:
        shape = (head_dim, group_size, q.element_size(), machine.has_warpgroup_products)
        config = prefill_config(*shape) if new_rows is None else new_tiles_config(*shape[:2])
    block_queries = config.block_rows // group_size
    num_tiles = (q.shape[0] - first_sequence) // block_queries + num_sequences
    _prefill_program[(num_kv_heads, num_tiles)](
        q,
        key_cache,
        value_cache,
        out,
        batch.query_starts,
        batch.context_lens,
        batch.block_tables,
        *_tiles(new_rows, config.block_tokens, next_power_of_two(head_dim), machine),
        first_sequence,
        num_sequences,
        q.stride(0),
        batch.block_tables.stride(0),
        key_cache.stride(0),
        value_cache.stride(0),
        scale * key_scale * math.log2(math.e),
        value_scale,
        NUM_KV_HEADS=num_kv_heads,
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        WINDOW=window or 0,
        BLOCK_ROWS=config.block_rows,
        BLOCK_QUERIES=block_queries,
        BLOCK_DIM=next_power_of_two(head_dim),
        BLOCK_TOKENS=config.block_tokens,
        HAS_NEW_TILES=new_rows is not None,
        INTERPRETED=INTERPRETED,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **machine.launch_options,
    )


def _new_rows(
    qkv: Tensor | None,
    q: Tensor,
    key_cache: Tensor,
    window: int | None,
    machine: Machine,
) -> tuple[Tensor, Tensor] | None:
    """This step's keys and values ``[T, num_kv_heads * head_dim]``, if their tiles can be read.

    Not with a window, where few tiles are seen whole, nor where the cache rounds otherwise.
    """
    if qkv is None or window is not None or not machine.has_warpgroup_products:
        return None
    _, num_kv_heads, _, head_dim = key_cache.shape
    query_size, size = q.shape[1] * head_dim, num_kv_heads * head_dim
    keys, values = qkv[:, query_size : query_size + size], qkv[:, query_size + size :]
    is_readable = (
        q.element_size() == 2
        and q.dtype == key_cache.dtype
        and qkv.stride(0) % 8 == 0
        and keys.data_ptr() % 16 == 0
        and values.data_ptr() % 16 == 0
    )
    return (keys, values) if is_readable else None


def _tiles(
    rows: tuple[Tensor, Tensor] | None, block_tokens: int, block_dim: int, machine: Machine
) -> tuple[object, object]:
    if rows is None:
        return machine.unused, machine.unused
    keys, values = (
        TensorDescriptor(part, list(part.shape), [part.stride(0), 1], [block_tokens, block_dim])
        for part in rows
    )
    return keys, values

"""Attention of many decodes over the pages that they have in common, read once for all.

Decode attention reads each sequence's pages for itself, so 256 sequences with one prompt prefix
read it 256 times a step. Here the queries of all sequences stand in one tile, as in prefill, and
multiply with each tile of the common pages; every visible key is visible to all of them, so
nothing is masked but the end. What comes out is partial: for each split of the pages, each query
head's result and the logarithm of its weights' sum, from which decode attention goes on with the
sequence's own pages.

Source: Juravsky et al., "Hydragen: high-throughput LLM inference with shared prefixes" (2024).
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.interface import AttentionBatch, SharedPrefix
from octavo.kernels.triton.launch import INTERPRETED, Machine, ceil_div, next_power_of_two
from octavo.kernels.triton.overlap import wait_for_predecessors
from octavo.kernels.triton.pages import load_rows, locate_tokens, multiply, multiply_add

_MAX_SPLITS = 8
_PROGRAMS_PER_MULTIPROCESSOR = 2


@dataclass(frozen=True, slots=True)
class SharedPartials:
    """What the pass leaves for each decode; float32, results already divided by their sums."""

    results: Tensor
    """``[num_splits, num_decodes, num_heads, head_dim]``."""
    logsumexps: Tensor
    """``[num_splits, num_decodes, num_heads]``, to base 2; -inf for a split without tokens."""

    @property
    def num_splits(self) -> int:
        return self.results.shape[0]


@triton.jit(
    do_not_specialize=["num_rows", "table_stride", "num_splits"],
    do_not_specialize_on_alignment=["lens", "block_tables"],
)
def _shared_program(
    q,
    key_cache,
    value_cache,
    results,
    logsumexps,
    lens,
    sharer,
    block_tables,
    num_rows,
    q_stride,
    table_stride,
    key_block_stride,
    value_block_stride,
    num_splits,
    score_scale,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program for one tile of (sequence, head in its group) rows, KV head and split."""
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    wait_for_predecessors(OVERLAP)
    source = tl.load(sharer)
    length = tl.load(lens + source)
    share = tl.cdiv(tl.cdiv(length, num_splits), BLOCK_TOKENS) * BLOCK_TOKENS
    begin = split * share
    end = tl.minimum(begin + share, length)
    table = block_tables + source * table_stride
    rows = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    dims = tl.arange(0, BLOCK_DIM)
    row_mask = rows < num_rows
    inside = row_mask[:, None] & (dims < HEAD_DIM)[None, :]
    sequences = (rows // GROUP_SIZE).to(tl.int64)
    heads = kv_head * GROUP_SIZE + rows % GROUP_SIZE
    q_rows = sequences * q_stride + heads * HEAD_DIM
    queries = tl.load(q + q_rows[:, None] + dims[None, :], mask=inside, other=0.0)
    largest = tl.full([BLOCK_ROWS], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    result = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    for first in range(begin, end, BLOCK_TOKENS):
        tokens = first + tl.arange(0, BLOCK_TOKENS)
        mask = tokens < end
        blocks, offsets = locate_tokens(table, tokens, mask, kv_head, HEAD_DIM, BLOCK_SIZE, True)
        key_rows = key_cache + blocks * key_block_stride + offsets
        value_rows = value_cache + blocks * value_block_stride + offsets
        keys = load_rows(key_rows, mask, dims, HEAD_DIM, BLOCK_DIM, True)
        values = load_rows(value_rows, mask, dims, HEAD_DIM, BLOCK_DIM, True)
        scores = multiply(queries, tl.trans(keys.to(queries.dtype)), INTERPRETED)
        scores = tl.where(mask[None, :], scores * score_scale, -float("inf"))
        # Every tile holds a visible token, so the maximum is finite.
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_largest[:, None])
        carried = tl.exp2(largest - new_largest)
        total = total * carried + tl.sum(weights, axis=1)
        result = multiply_add(
            weights.to(queries.dtype),
            values.to(queries.dtype),
            result * carried[:, None],
            INTERPRETED,
        )
        largest = new_largest
    safe_total = tl.where(total == 0.0, 1.0, total)
    num_sequences = num_rows // GROUP_SIZE
    out_rows = (split * num_sequences + sequences) * NUM_KV_HEADS * GROUP_SIZE + heads
    pointers = results + out_rows[:, None] * HEAD_DIM + dims[None, :]
    tl.store(pointers, result / safe_total[:, None], mask=inside)
    tl.store(logsumexps + out_rows, largest + tl.log2(safe_total), mask=row_mask)


def shared_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    batch: AttentionBatch,
    shared: SharedPrefix,
    scale: float,
    machine: Machine,
    key_scale: float = 1.0,
) -> SharedPartials:
    """Attend from every decode of the batch, sharing or not, to the common pages.

    ``q: [T, num_heads, head_dim]``, heads contiguous. Those that do not share get results that
    nobody reads.
    """
    num_sequences = batch.num_decodes
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    num_heads = q.shape[1]
    group_size = num_heads // num_kv_heads
    num_rows = num_sequences * group_size
    block_rows, block_tokens, num_warps, num_stages = _tile(head_dim, q.element_size())
    num_tiles = ceil_div(num_rows, block_rows)
    splits = _num_splits(num_tiles * num_kv_heads, machine.num_multiprocessors)
    shape = (splits, num_sequences, num_heads)
    results = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
    logsumexps = torch.empty(shape, dtype=torch.float32, device=q.device)
    _shared_program[(num_tiles, num_kv_heads, splits)](
        q,
        key_cache,
        value_cache,
        results,
        logsumexps,
        shared.lens,
        shared.sharer,
        batch.block_tables,
        num_rows,
        q.stride(0),
        batch.block_tables.stride(0),
        key_cache.stride(0),
        value_cache.stride(0),
        splits,
        scale * key_scale * math.log2(math.e),
        NUM_KV_HEADS=num_kv_heads,
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        BLOCK_ROWS=block_rows,
        BLOCK_DIM=next_power_of_two(head_dim),
        BLOCK_TOKENS=block_tokens,
        INTERPRETED=INTERPRETED,
        num_warps=num_warps,
        num_stages=num_stages,
        **machine.launch_options,
    )
    return SharedPartials(results, logsumexps)


def _tile(head_dim: int, element_bytes: int) -> tuple[int, int, int, int]:
    """Rows and tokens of a tile, warps, stages."""
    if element_bytes == 4:
        return (32, 32, 8, 2) if head_dim <= 128 else (16, 16, 8, 1)
    return 128, 64 if head_dim <= 128 else 32, 8, 3


def _num_splits(num_programs: int, num_multiprocessors: int) -> int:
    """As few as give every multiprocessor its programs; known before the batch."""
    splits = 1
    while (
        splits < _MAX_SPLITS
        and splits * num_programs < _PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors
    ):
        splits *= 2
    return splits

"""Attention of one new token per sequence over its pages: flash decoding.

Bound by reading the cache, so each key and value is read once for all query heads that share
it, and a sequence is cut into splits so that short batches still fill the device. The grid
comes from what is known before the batch (a CUDA graph replays it for any lengths); each program
takes its share of the actual length. The last split of a head to finish combines them all.

Source: Dao et al., "Flash-Decoding for long-context inference" (2023).
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

from octavo.kernels.interface import AttentionBatch
from octavo.kernels.triton.launch import INTERPRETED, MAX_ARRIVALS, Machine, next_power_of_two
from octavo.kernels.triton.overlap import wait_for_predecessors
from octavo.kernels.triton.pages import load_rows, locate_tokens, multiply, multiply_add
from octavo.kernels.triton.shared_attention import shared_attention

_MIN_GROUP_ROWS = 16  # the least number of rows of a matrix instruction
_LIMITED_GROUP = 8  # of larger ones the limit to registers would spill some
_MAX_COMBINED_VALUES = 8192  # partial results held in registers at once while combining


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How decode programs are shaped; the table below chooses by head size and dtype."""

    block_tokens: int
    """Tokens of one tile."""
    min_split_tokens: int
    """A split shorter than this costs more to combine than it saves."""
    num_warps: int
    num_stages: int
    programs_per_multiprocessor: int = 3
    """How many programs there should be at least, for every multiprocessor. A pair is not cut for
    more: each program takes longer to begin and to combine than the last of them keep others
    waiting."""
    max_registers: int | None = None
    """Of a thread, where the group is small enough for them; None: what the compiler likes."""
    max_splits: int = 64


def decode_config(head_dim: int, element_bytes: int) -> DecodeConfig:
    """The shape for a padded head size and a cache element's size in bytes."""
    tile_bytes = 16384  # of keys, and as much of values, per pipeline stage
    block_tokens = tile_bytes // (next_power_of_two(head_dim) * max(element_bytes, 2))
    block_tokens = max(16, min(128, block_tokens))
    return DecodeConfig(
        block_tokens=block_tokens,
        min_split_tokens=max(64, block_tokens),
        num_warps=4,
        # Reading through the block table, the compiler loads (num_stages - 1) // 2 tiles ahead:
        # one, and with it four programs find room on a multiprocessor, in registers too.
        num_stages=3,
        max_registers=128 if next_power_of_two(head_dim) == 128 and element_bytes == 2 else None,
    )


def num_decode_splits(
    num_pairs: int, max_context_len: int, num_multiprocessors: int, config: DecodeConfig
) -> int:
    """Splits of each sequence, for ``num_pairs`` pairs of a sequence and a KV head.

    A power of two, as few as fill the device, from bounds known before the batch.
    """
    wanted = config.programs_per_multiprocessor * num_multiprocessors
    splits = 1
    while (
        splits * num_pairs < wanted
        and splits < config.max_splits
        and splits * config.min_split_tokens < max_context_len
        and num_pairs <= MAX_ARRIVALS
    ):
        splits *= 2
    return splits


@triton.jit
def _combine(
    partial,
    partial_logsumexp,
    out_rows,
    pair,
    used,
    num_splits,
    value_scale,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """Merge the partial results of one pair, in the order of splits, and write the output."""
    lanes = tl.arange(0, BLOCK_SPLITS)
    heads = tl.arange(0, BLOCK_HEADS)
    dims = tl.arange(0, BLOCK_DIM)
    inside = (heads < GROUP_SIZE)[:, None] & (dims < HEAD_DIM)[None, :]
    largest = tl.full([BLOCK_HEADS], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_HEADS], tl.float32)
    result = tl.zeros([BLOCK_HEADS, BLOCK_DIM], tl.float32)
    for first in range(0, used, BLOCK_SPLITS):
        splits = first + lanes
        rows = (pair * num_splits + splits)[:, None] * GROUP_SIZE + heads[None, :]
        mask = (splits < used)[:, None] & (heads < GROUP_SIZE)[None, :]
        logsumexp = tl.load(
            partial_logsumexp + rows, mask=mask, other=-float("inf"), cache_modifier=".cg"
        )
        tile = tl.load(
            partial + rows[:, :, None] * HEAD_DIM + dims[None, None, :],
            mask=mask[:, :, None] & inside[None, :, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_largest = tl.maximum(largest, tl.max(logsumexp, axis=0))
        # Rows past the group have no split at all; keep their arithmetic finite.
        base = tl.where(new_largest == -float("inf"), 0.0, new_largest)
        weights = tl.exp2(logsumexp - base[None, :])
        carried = tl.exp2(largest - base)
        total = total * carried + tl.sum(weights, axis=0)
        result = result * carried[:, None] + tl.sum(tile * weights[:, :, None], axis=0)
        largest = new_largest
    result = result * value_scale / tl.where(total == 0.0, 1.0, total)[:, None]
    pointers = out_rows + heads[:, None] * HEAD_DIM + dims[None, :]
    tl.store(pointers, result.to(out_rows.dtype.element_ty), mask=inside)


@triton.jit
def _merge_shared(
    shared_results,
    shared_logsumexps,
    first_row,
    sequences_stride,
    num_shared_splits,
    rows,
    dims,
    inside,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """The online softmax's state after the common pages, from their splits' partial results."""
    largest = tl.full([BLOCK_ROWS], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    result = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    for split in range(num_shared_splits):
        out_rows = first_row + split * sequences_stride + rows
        logsumexp = tl.load(
            shared_logsumexps + out_rows, mask=rows < GROUP_SIZE, other=-float("inf")
        )
        pointers = shared_results + out_rows[:, None] * HEAD_DIM + dims[None, :]
        tile = tl.load(pointers, mask=inside, other=0.0)
        new_largest = tl.maximum(largest, logsumexp)
        # Rows past the group, and splits without tokens; keep their arithmetic finite.
        base = tl.where(new_largest == -float("inf"), 0.0, new_largest)
        weights = tl.exp2(logsumexp - base)
        carried = tl.exp2(largest - base)
        total = total * carried + weights
        result = result * carried[:, None] + tile * weights[:, None]
        largest = new_largest
    # Rows past the group start as they would without common pages, but with a finite maximum.
    return tl.where(largest == -float("inf"), 0.0, largest), total, result


@triton.jit(
    do_not_specialize=["table_stride", "num_splits", "num_sequences", "num_shared_splits"],
    do_not_specialize_on_alignment=["context_lens", "block_tables", "order", "shared_lens"],
)
def _decode_program(
    q,
    key_cache,
    value_cache,
    out,
    partial,
    partial_logsumexp,
    arrivals,
    context_lens,
    block_tables,
    order,
    shared_lens,
    shared_results,
    shared_logsumexps,
    num_sequences,
    num_shared_splits,
    q_stride,
    table_stride,
    key_block_stride,
    value_block_stride,
    num_splits,
    score_scale,
    value_scale,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    MIN_SPLIT_TOKENS: tl.constexpr,
    COMBINED_HEADS: tl.constexpr,
    COMBINED_SPLITS: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_SHARED: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program for one split of one pair of a sequence and a KV head.

    ``score_scale`` includes the factor to base 2 and the key cache's scale.
    """
    # Programs begin in the order of their numbers: all heads of the longest sequence first.
    kv_head = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    if HAS_ORDER:
        sequence = tl.load(order + sequence)
    # Written long before the predecessor, which brings the query and the newest key.
    length = tl.load(context_lens + sequence)
    wait_for_predecessors(OVERLAP)
    # The query stands at length - 1 and sees positions begin_seen : length.
    begin_seen = length * 0
    if WINDOW > 0:
        begin_seen = tl.maximum(length - WINDOW, 0)
    if HAS_SHARED:
        # What lies in common pages is seen already.
        begin_seen = tl.load(shared_lens + sequence)
    seen = length - begin_seen
    share = tl.cdiv(tl.cdiv(seen, num_splits), BLOCK_TOKENS) * BLOCK_TOKENS
    share = tl.maximum(share, MIN_SPLIT_TOKENS)
    used = tl.cdiv(seen, share)
    # Split 0 also runs for an empty sequence (padding), to write zeros.
    if split < tl.maximum(used, 1):
        begin = begin_seen + split * share
        end = tl.minimum(begin + share, length)
        rows = tl.arange(0, BLOCK_ROWS)
        dims = tl.arange(0, BLOCK_DIM)
        lanes = tl.arange(0, BLOCK_TOKENS)
        inside = (rows < GROUP_SIZE)[:, None] & (dims < HEAD_DIM)[None, :]
        row_offsets = (kv_head * GROUP_SIZE + rows)[:, None] * HEAD_DIM + dims[None, :]
        queries = tl.load(q + sequence * q_stride + row_offsets, mask=inside, other=0.0)
        table = block_tables + sequence * table_stride
        largest = tl.full([BLOCK_ROWS], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK_ROWS], tl.float32)
        result = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
        if HAS_SHARED:  # noqa: SIM102 - a compile-time condition around one of run time
            if (split == 0) & (begin_seen > 0):
                first_row = (sequence * NUM_KV_HEADS + kv_head) * GROUP_SIZE
                largest, total, result = _merge_shared(
                    shared_results, shared_logsumexps, first_row,
                    num_sequences * NUM_KV_HEADS * GROUP_SIZE, num_shared_splits,
                    rows, dims, inside, GROUP_SIZE, HEAD_DIM, BLOCK_ROWS, BLOCK_DIM,
                )  # fmt: skip
        for first in range(begin, end, BLOCK_TOKENS):
            tokens = first + lanes
            mask = tokens < end
            blocks, offsets = locate_tokens(
                table, tokens, mask, kv_head, HEAD_DIM, BLOCK_SIZE, True
            )
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
        out_rows = out + (sequence * NUM_KV_HEADS + kv_head) * GROUP_SIZE * HEAD_DIM
        local_offsets = rows[:, None] * HEAD_DIM + dims[None, :]
        result = result / safe_total[:, None]
        if used <= 1:
            result = result * value_scale
            tl.store(out_rows + local_offsets, result.to(out.dtype.element_ty), mask=inside)
        else:
            pair = sequence * NUM_KV_HEADS + kv_head
            first_row = (pair * num_splits + split) * GROUP_SIZE
            tl.store(partial + first_row * HEAD_DIM + local_offsets, result, mask=inside)
            logsumexp = largest + tl.log2(safe_total)
            tl.store(partial_logsumexp + first_row + rows, logsumexp, mask=rows < GROUP_SIZE)
            # The barrier orders all threads' stores before the one thread that releases them.
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + pair, 1, sem="acq_rel", scope="gpu")
            if arrived == used - 1:
                _combine(
                    partial, partial_logsumexp, out_rows, pair, used, num_splits, value_scale,
                    GROUP_SIZE, HEAD_DIM, COMBINED_HEADS, BLOCK_DIM, COMBINED_SPLITS,
                )  # fmt: skip
                tl.store(arrivals + pair, 0)


def decode_attention(
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
    config: DecodeConfig | None = None,
) -> None:
    """Write the outputs of the batch's first ``num_decodes`` tokens, one of each sequence.

    ``q, out: [T, num_heads, head_dim]``; q's heads are contiguous, ``out`` wholly so. A sequence
    of length 0 gets zeros. Values in the cache are multiplied by the scales (FP8 caches).
    """
    num_sequences = batch.num_decodes
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    group_size = q.shape[1] // num_kv_heads
    config = config or decode_config(head_dim, key_cache.element_size())
    max_seen = batch.max_context_len if window is None else min(batch.max_context_len, window)
    num_pairs = num_sequences * num_kv_heads
    splits = num_decode_splits(num_pairs, max_seen, machine.num_multiprocessors, config)
    shared = batch.shared if window is None else None
    partials = None
    if shared is not None:
        partials = shared_attention(
            q, key_cache, value_cache, batch, shared, scale, machine, key_scale
        )
    partial, logsumexp = machine.unused, machine.unused
    if splits > 1:
        shape = (num_pairs, splits, group_size)
        partial = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
        logsumexp = torch.empty(shape, dtype=torch.float32, device=q.device)
    block_dim = next_power_of_two(head_dim)
    combined_heads = next_power_of_two(group_size)
    order = batch.longest_first
    _decode_program[(num_kv_heads, num_sequences, splits)](
        q,
        key_cache,
        value_cache,
        out,
        partial,
        logsumexp,
        machine.arrivals,
        batch.context_lens,
        batch.block_tables,
        batch.context_lens if order is None else order,
        batch.context_lens if shared is None else shared.lens,
        machine.unused if partials is None else partials.results,
        machine.unused if partials is None else partials.logsumexps,
        num_sequences,
        0 if partials is None else partials.num_splits,
        q.stride(0),
        batch.block_tables.stride(0),
        key_cache.stride(0),
        value_cache.stride(0),
        splits,
        scale * key_scale * math.log2(math.e),
        value_scale,
        NUM_KV_HEADS=num_kv_heads,
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        WINDOW=window or 0,
        BLOCK_ROWS=max(_MIN_GROUP_ROWS, combined_heads),
        BLOCK_DIM=block_dim,
        BLOCK_TOKENS=config.block_tokens,
        MIN_SPLIT_TOKENS=config.min_split_tokens,
        COMBINED_HEADS=combined_heads,
        COMBINED_SPLITS=max(
            1, min(config.max_splits, _MAX_COMBINED_VALUES // (combined_heads * block_dim))
        ),
        HAS_ORDER=order is not None,
        HAS_SHARED=partials is not None,
        INTERPRETED=INTERPRETED,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **machine.options_with(config.max_registers if group_size <= _LIMITED_GROUP else None),
    )

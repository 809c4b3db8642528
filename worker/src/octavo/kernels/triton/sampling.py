"""Sampling: argmax, or Gumbel-max with Philox noise; and the same behind top-k, top-p, min-p.

Two programs. Without filters a row is cut into chunks that several workers search; the last to
finish picks the winner. With filters one worker takes a row and never sorts it: what the filters
keep is always "every logit from some value up", so a draw that turns out to lie below that value
also shows that nothing below the draw can be chosen, and the search goes on above it. That is
exact, and ends after about log2(1 / kept probability) rounds. The k-th largest logit itself is
found by counting digits of its bits.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.interface import SamplingBatch
from octavo.kernels.triton.launch import INTERPRETED, MAX_ARRIVALS, Machine, ceil_div
from octavo.kernels.triton.overlap import wait_for_predecessors

_MAX_CHUNKS = 64
_PROGRAMS_PER_MULTIPROCESSOR = 4
_BLOCK = 256 if INTERPRETED else 2048
_FILTERED_BLOCK = 256 if INTERPRETED else 4096


@triton.jit
def gumbel(seed, position, first, lanes):
    """Gumbel noise as :mod:`octavo.kernels.philox` defines it, in float32.

    ``lanes: [n]``, 0 to n. Returns four tensors ``[n]``: of the tokens :func:`_ids_of` says, and
    of those 16, 32 and 48 ids on.
    """
    zeros = lanes * 0
    words = tl.philox(seed, first // 4 + lanes, zeros + position, zeros, zeros)
    return (
        gumbel_of_words(words[0]),
        gumbel_of_words(words[1]),
        gumbel_of_words(words[2]),
        gumbel_of_words(words[3]),
    )


@triton.jit
def _ids_of(first, lanes):
    """The first 16 of each 64 ids from ``first`` on: those that use their counters' first words."""
    return first + lanes // 16 * 64 + lanes % 16


@triton.jit
def _consider(
    logits,
    ids,
    noise,
    scale,
    masks,
    mask_row,
    best,
    best_ids,
    VOCAB_SIZE: tl.constexpr,
):
    """The better of each lane's best score so far and that of ``ids``, and whose it is."""
    scores = tl.load(logits + ids, mask=ids < VOCAB_SIZE, other=-float("inf")).to(tl.float32)
    if mask_row >= 0:
        scores = _masked(scores, ids, masks, mask_row, VOCAB_SIZE)
    scores = tl.div_rn(scores, scale) + noise
    is_better = scores > best
    return tl.where(is_better, scores, best), tl.where(is_better, ids, best_ids)


@triton.jit
def gumbel_of_words(words):
    """Gumbel noise of random ``words: [n], uint32``.

    ``u = odd * 2**-25`` has one bit more than float32 holds. Where that matters, near 1, the
    inner logarithm is a series in ``1 - u``, which is exact.
    """
    odd = (words >> 8).to(tl.int32) * 2 + 1
    v = (33554432 - odd).to(tl.float32) * 2.9802322387695312e-08
    series = v * (1.0 + v * (0.5 + v * (0.33333333333 + v * (0.25 + v * 0.2))))
    direct = -tl.log(odd.to(tl.float32) * 2.9802322387695312e-08)
    return -tl.log(tl.where(v < 0.03125, series, direct))


@triton.jit
def _masked(scores, ids, masks, mask_row, VOCAB_SIZE: tl.constexpr):
    """Minus infinity for the tokens that a mask leaves out."""
    num_words = (VOCAB_SIZE + 31) // 32
    words = tl.load(masks + mask_row * num_words + ids // 32, mask=ids < VOCAB_SIZE, other=0)
    return tl.where((words >> (ids % 32)) & 1 == 1, scores, -float("inf"))


@triton.jit
def _winner(scores, ids):
    """The best of ``scores``, and the lowest id that has it."""
    best = tl.max(scores, axis=0)
    return best, tl.min(tl.where(scores == best, ids, _no_token()), axis=0)


@triton.jit
def _no_token():
    """Larger than any id.

    Not a constant of the module, on which the key that Triton stores compiled programs under may
    or may not depend, by which function was asked for its key first. Make it one when the oldest
    Triton taken has https://github.com/triton-lang/triton/pull/10494 (seen in 3.6.0).
    """
    return 2**31 - 1


@triton.jit(
    # With masks or without, it is one program: nothing is compiled when the first one comes.
    do_not_specialize=["blocks_per_chunk", "num_chunks", "has_masks"],
    do_not_specialize_on_alignment=[
        "temperatures",
        "seeds",
        "positions",
        "masks",
        "mask_rows",
        "out",
    ],
)
def _draw_program(
    logits,
    temperatures,
    seeds,
    positions,
    masks,
    mask_rows,
    has_masks,
    out,
    chunk_scores,
    chunk_ids,
    arrivals,
    row_stride,
    blocks_per_chunk,
    num_chunks,
    VOCAB_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX_CHUNKS: tl.constexpr,
    ALL_GREEDY: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program for one chunk of one row."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    wait_for_predecessors(OVERLAP)
    # Whole blocks, so that the compiler sees aligned loads.
    begin = chunk * blocks_per_chunk * BLOCK
    end = tl.minimum(begin + blocks_per_chunk * BLOCK, VOCAB_SIZE)
    lanes = tl.arange(0, BLOCK // 4)
    best = tl.full([BLOCK // 4], -float("inf"), tl.float32)
    best_ids = _ids_of(begin, lanes)
    temperature = 0.0
    scale = 1.0
    seed = tl.zeros([], tl.int64)
    position = tl.zeros([], tl.int32)
    if not ALL_GREEDY:
        temperature = tl.load(temperatures + row)
        scale = tl.where(temperature > 0, temperature, 1.0)
        seed = tl.load(seeds + row)
        position = tl.load(positions + row)
    mask_row = tl.full([], -1, tl.int32)
    if has_masks != 0:
        mask_row = tl.load(mask_rows + row)
    row_logits = logits + row * row_stride
    none = tl.zeros([BLOCK // 4], tl.float32)
    for first in range(begin, end, BLOCK):
        ids = _ids_of(first, lanes)
        noise = (none, none, none, none)
        if not ALL_GREEDY and temperature > 0:
            noise = gumbel(seed, position, first, lanes)
        for word in tl.static_range(4):
            best, best_ids = _consider(
                row_logits, ids + 16 * word, noise[word], scale, masks, mask_row, best, best_ids,
                VOCAB_SIZE,
            )  # fmt: skip
    score, token_id = _winner(best, best_ids)
    tl.store(chunk_scores + row * num_chunks + chunk, score)
    tl.store(chunk_ids + row * num_chunks + chunk, token_id)
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals + row, 1, sem="acq_rel", scope="gpu")
    if arrived == num_chunks - 1:
        chunks = tl.arange(0, MAX_CHUNKS)
        mask = chunks < num_chunks
        pointers = row * num_chunks + chunks
        scores = tl.load(
            chunk_scores + pointers, mask=mask, other=-float("inf"), cache_modifier=".cg"
        )
        ids = tl.load(chunk_ids + pointers, mask=mask, other=_no_token(), cache_modifier=".cg")
        _, token_id = _winner(scores, ids)
        tl.store(out + row, token_id.to(tl.int64))
        tl.store(arrivals + row, 0)


@triton.jit
def _kth_largest(row_logits, temperature, k, VOCAB_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The k-th largest of ``logits / temperature``, by one histogram for each byte of its bits."""
    lanes = tl.arange(0, BLOCK)
    prefix = tl.zeros([], tl.uint32)
    remaining = k
    shift = tl.full([], 24, tl.uint32)
    for _ in range(4):
        counts = tl.zeros([256], tl.int32)
        for first in range(0, VOCAB_SIZE, BLOCK):
            ids = first + lanes
            mask = ids < VOCAB_SIZE
            x = tl.load(row_logits + ids, mask=mask, other=0.0).to(tl.float32)
            bits = tl.div_rn(x, temperature).to(tl.uint32, bitcast=True)
            # Unsigned keys in the order of the floats.
            is_negative = (bits >> 31) != 0
            keys = tl.where(is_negative, bits ^ 0xFFFFFFFF, bits | 0x80000000)
            # Only keys that agree in the bytes found so far (a shift by 32 is undefined).
            mask = mask & ((((keys ^ prefix) >> shift) >> 8) == 0)
            digits = ((keys >> shift) & 0xFF).to(tl.int32)
            counts += tl.histogram(digits, 256, mask=mask)
        at_least = tl.cumsum(counts, axis=0, reverse=True)
        is_reached = (at_least >= remaining).to(tl.int32)
        digit = tl.sum(is_reached, axis=0) - 1
        above = tl.max(tl.where(is_reached == 0, at_least, 0), axis=0)
        remaining -= above
        prefix = prefix | (digit.to(tl.uint32) << shift)
        shift -= 8
    is_positive = (prefix >> 31) != 0
    bits = tl.where(is_positive, prefix & 0x7FFFFFFF, prefix ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _largest(row_logits, temperature, VOCAB_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The largest of ``logits / temperature``."""
    lanes = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    for first in range(0, VOCAB_SIZE, BLOCK):
        ids = first + lanes
        x = tl.load(row_logits + ids, mask=ids < VOCAB_SIZE, other=-float("inf"))
        best = tl.maximum(best, x.to(tl.float32))
    return tl.div_rn(tl.max(best, axis=0), temperature)


@triton.jit
def _mass(
    row_logits,
    temperature,
    largest,
    floor,
    pivot,
    VOCAB_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum of ``exp(x - largest)`` over scaled logits from ``floor`` up and above ``pivot``."""
    lanes = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(0, VOCAB_SIZE, BLOCK):
        ids = first + lanes
        x = tl.load(row_logits + ids, mask=ids < VOCAB_SIZE, other=-float("inf"))
        x = tl.div_rn(x.to(tl.float32), temperature)
        sums += tl.where((x >= floor) & (x > pivot), tl.exp(x - largest), 0.0)
    return tl.sum(sums, axis=0)


@triton.jit
def _best_above(
    row_logits,
    temperature,
    is_random,
    seed,
    position,
    floor,
    pivot,
    VOCAB_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The token of the best noisy score among scaled logits from ``floor`` up, above ``pivot``."""
    lanes = tl.arange(0, BLOCK // 4)
    best = tl.full([BLOCK // 4], -float("inf"), tl.float32)
    best_ids = lanes
    none = tl.zeros([BLOCK // 4], tl.float32)
    for first in range(0, VOCAB_SIZE, BLOCK):
        all_ids = first + tl.arange(0, BLOCK)
        x = tl.load(row_logits + all_ids, mask=all_ids < VOCAB_SIZE, other=-float("inf"))
        x = tl.div_rn(x.to(tl.float32), temperature)
        # Filters leave most blocks without a candidate: spare those the noise.
        if tl.max(((x >= floor) & (x > pivot)).to(tl.int32), axis=0) > 0:
            noise = (none, none, none, none)
            if is_random:
                noise = gumbel(seed, position, first, lanes)
            for word in tl.static_range(4):
                ids = _ids_of(first, lanes) + 16 * word
                part = tl.load(row_logits + ids, mask=ids < VOCAB_SIZE, other=-float("inf"))
                part = tl.div_rn(part.to(tl.float32), temperature)
                scores = part + noise[word]
                is_better = (part >= floor) & (part > pivot) & (scores > best)
                best = tl.where(is_better, scores, best)
                best_ids = tl.where(is_better, ids, best_ids)
    _, token_id = _winner(best, best_ids)
    return token_id


@triton.jit(
    do_not_specialize=["has_masks"],
    do_not_specialize_on_alignment=[
        "temperatures",
        "top_k",
        "top_p",
        "min_p",
        "seeds",
        "positions",
        "masks",
        "mask_rows",
        "out",
    ],
)
def _filtered_draw_program(
    logits,
    temperatures,
    top_k,
    top_p,
    min_p,
    seeds,
    positions,
    masks,
    mask_rows,
    has_masks,
    out,
    row_stride,
    VOCAB_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program a row. Greedy rows pass through with every filter off."""
    row = tl.program_id(0).to(tl.int64)
    row_logits = logits + row * row_stride
    wait_for_predecessors(OVERLAP)
    if has_masks != 0:
        mask_row = tl.load(mask_rows + row)
        if mask_row >= 0:
            # In place, once: the search below reads the row many times.
            for first in range(0, VOCAB_SIZE, BLOCK):
                ids = first + tl.arange(0, BLOCK)
                x = tl.load(row_logits + ids, mask=ids < VOCAB_SIZE)
                x = _masked(x, ids, masks, mask_row, VOCAB_SIZE)
                tl.store(row_logits + ids, x, mask=ids < VOCAB_SIZE)
        tl.debug_barrier()
    temperature = tl.load(temperatures + row)
    is_random = temperature > 0
    temperature = tl.where(is_random, temperature, 1.0)
    seed = tl.load(seeds + row)
    position = tl.load(positions + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    relative = tl.load(min_p + row)
    largest = _largest(row_logits, temperature, VOCAB_SIZE, BLOCK)
    floor = tl.full([], -float("inf"), tl.float32)
    if is_random & (k > 0) & (k < VOCAB_SIZE):
        floor = _kth_largest(row_logits, temperature, k, VOCAB_SIZE, BLOCK)
    has_top_p = is_random & (p < 1.0)
    allowed = tl.zeros([], tl.float32)
    if has_top_p:
        # The distribution that top-k left; min-p comes after.
        allowed = p * _mass(
            row_logits, temperature, largest, floor, -float("inf"), VOCAB_SIZE, BLOCK
        )
    if is_random & (relative > 0.0):
        floor = tl.maximum(floor, largest + tl.log(relative))
    pivot = tl.full([], -float("inf"), tl.float32)
    token_id = tl.zeros([], tl.int32)
    is_searching = True
    while is_searching:
        token_id = _best_above(
            row_logits, temperature, is_random, seed, position, floor, pivot, VOCAB_SIZE, BLOCK
        )
        is_searching = False
        if has_top_p:
            drawn = tl.div_rn(tl.load(row_logits + token_id).to(tl.float32), temperature)
            above = _mass(row_logits, temperature, largest, floor, drawn, VOCAB_SIZE, BLOCK)
            # Rises at every round, so the search ends whatever the rounding.
            is_searching = (above >= allowed) & (drawn < largest) & (drawn > pivot)
            pivot = drawn
    tl.store(out + row, token_id.to(tl.int64))


def sample(logits: Tensor, batch: SamplingBatch, machine: Machine) -> Tensor:
    """See :meth:`octavo.kernels.interface.Kernels.sample`.

    The choice can differ from the reference's only where two scores, or a row's filter boundary,
    agree to within float32 rounding.
    """
    num_rows, vocab_size = logits.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return out
    has_masks = int(batch.masks is not None)
    # Any int32 tensor stands for masks that are not there: the programs do not look.
    masks = batch.positions if batch.masks is None else batch.masks
    mask_rows = batch.positions if batch.mask_rows is None else batch.mask_rows
    if batch.any_filter and not batch.all_greedy:
        _filtered_draw_program[(num_rows,)](
            logits,
            batch.temperature,
            batch.top_k,
            batch.top_p,
            batch.min_p,
            batch.seeds,
            batch.positions,
            masks,
            mask_rows,
            has_masks,
            out,
            logits.stride(0),
            VOCAB_SIZE=vocab_size,
            BLOCK=_FILTERED_BLOCK,
            num_warps=16,
            **machine.launch_options,
        )
        return out
    if num_rows > MAX_ARRIVALS:
        raise ValueError(f"{num_rows} rows of logits in one call; at most {MAX_ARRIVALS} fit")
    blocks_per_chunk, num_chunks = chunks_of(num_rows, vocab_size, machine.num_multiprocessors)
    scores = torch.empty((num_rows, num_chunks), dtype=torch.float32, device=logits.device)
    ids = torch.empty((num_rows, num_chunks), dtype=torch.int32, device=logits.device)
    _draw_program[(num_rows, num_chunks)](
        logits,
        batch.temperature,
        batch.seeds,
        batch.positions,
        masks,
        mask_rows,
        has_masks,
        out,
        scores,
        ids,
        machine.arrivals,
        logits.stride(0),
        blocks_per_chunk,
        num_chunks,
        VOCAB_SIZE=vocab_size,
        BLOCK=_BLOCK,
        MAX_CHUNKS=_MAX_CHUNKS,
        ALL_GREEDY=batch.all_greedy,
        # So that a thread has four tokens in a row of each word's.
        num_warps=4,
        **machine.launch_options,
    )
    return out


def chunks_of(num_rows: int, vocab_size: int, num_multiprocessors: int) -> tuple[int, int]:
    """Blocks of a chunk, and chunks of a row: as few as fill the device, and none empty."""
    num_blocks = ceil_div(vocab_size, _BLOCK)
    wanted = ceil_div(_PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors, num_rows)
    blocks_per_chunk = ceil_div(num_blocks, max(1, min(wanted, num_blocks, _MAX_CHUNKS)))
    return blocks_per_chunk, ceil_div(num_blocks, blocks_per_chunk)

"""A step's tokens by adapter: sorted, and cut into tiles of one adapter each, on the device.

One launch for each step. A token's place is counted instead of sorted for: so many tokens have a
lower slot, or the same and come before it. That is all pairs, but they are few or the step is
long, and nothing waits for the device.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.adapters import tiles_at_most
from octavo.kernels.triton.launch import ceil_div, next_power_of_two

MIN_TILE, MAX_TILE = 16, 64
_BLOCK = 32
_PAIRS = 8192
"""Compared by a program at once."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """A step's tokens by adapter, on the device.

    ``order: [T], int64``: tokens sorted by slot, those without an adapter first;
    ``counts: [num_slots], int32``: tokens of each slot;
    ``table: [3, num_tiles], int64``: of each tile its slot (-1: no adapter), the first place in
    ``order`` and the number of tokens (0: the tile is not needed).
    """

    order: Tensor
    counts: Tensor
    table: Tensor
    tile_size: int
    most_used: int
    """Adapters that the tokens have at most."""
    is_uniform: bool
    """Whether sums must have one order whatever the step: tiles then have one size."""

    @property
    def likely_tiles(self) -> int:
        """How many are needed where tokens are spread evenly over so many adapters."""
        num_tokens = self.order.shape[0]
        return max(-(-num_tokens // self.tile_size), min(num_tokens, self.most_used))

    @property
    def num_tiles(self) -> int:
        return self.table.shape[1]


@triton.jit
def _place_tokens(slots, order, num_tokens, first, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """``order[place] = token`` for the ``BLOCK`` tokens from ``first`` on."""
    tokens = first + tl.arange(0, BLOCK)
    own = tl.load(slots + tokens, mask=tokens < num_tokens, other=0)
    places = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, num_tokens, CHUNK):
        others = begin + tl.arange(0, CHUNK)
        is_token = others < num_tokens
        theirs = tl.load(slots + others, mask=is_token, other=0)
        is_equal = theirs[None, :] == own[:, None]
        is_ahead = (theirs[None, :] < own[:, None]) | (
            is_equal & (others[None, :] < tokens[:, None])
        )
        places += tl.sum((is_ahead & is_token[None, :]).to(tl.int32), axis=1)
    tl.store(order + places, tokens.to(tl.int64), mask=tokens < num_tokens)


@triton.jit
def _fill_table(
    slots,
    slot_counts,
    table,
    num_tokens,
    num_tiles,
    first,
    NUM_SLOTS: tl.constexpr,
    TILE: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The table's entries for the ``BLOCK`` tiles from ``first`` on. Group ``g`` is slot
    ``g - 1``; groups past the last slot are empty."""
    groups = tl.arange(0, GROUPS)
    counts = tl.zeros([GROUPS], tl.int32)
    for begin in range(0, num_tokens, CHUNK):
        others = begin + tl.arange(0, CHUNK)
        theirs = tl.load(slots + others, mask=others < num_tokens, other=GROUPS)
        counts += tl.sum((theirs[None, :] + 1 == groups[:, None]).to(tl.int32), axis=1)
    is_slot = (groups > 0) & (groups <= NUM_SLOTS)
    tl.store(slot_counts + groups - 1, counts, mask=is_slot & (first == 0))
    sizes = (counts + TILE - 1) // TILE
    ends = tl.cumsum(sizes, 0)
    begins = tl.cumsum(counts, 0) - counts
    tiles = first + tl.arange(0, BLOCK)
    is_past = ends[None, :] <= tiles[:, None]
    group = tl.sum(is_past.to(tl.int32), axis=1)
    is_own = groups[None, :] == group[:, None]
    before = tl.sum(tl.where(is_own, (ends - sizes)[None, :], 0), axis=1)
    begin_of = tl.sum(tl.where(is_own, begins[None, :], 0), axis=1)
    count_of = tl.sum(tl.where(is_own, counts[None, :], 0), axis=1)
    start = (tiles - before) * TILE
    is_needed = group <= NUM_SLOTS
    mask = tiles < num_tiles
    count = tl.minimum(count_of - start, TILE)
    tl.store(table + tiles, tl.where(is_needed, group - 1, -1).to(tl.int64), mask=mask)
    firsts = tl.where(is_needed, begin_of + start, 0)
    tl.store(table + num_tiles + tiles, firsts.to(tl.int64), mask=mask)
    tl.store(table + 2 * num_tiles + tiles, tl.where(is_needed, count, 0).to(tl.int64), mask=mask)


@triton.jit(do_not_specialize=["num_tokens", "num_tiles", "num_token_blocks"])
def _tiles_program(
    slots,
    order,
    slot_counts,
    table,
    num_tokens,
    num_tiles,
    num_token_blocks,
    NUM_SLOTS: tl.constexpr,
    TILE: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """The first programs place tokens, the others fill the table."""
    program = tl.program_id(0)
    if program < num_token_blocks:
        _place_tokens(slots, order, num_tokens, program * BLOCK, BLOCK, PAIRS // BLOCK)
    else:
        first = (program - num_token_blocks) * BLOCK
        _fill_table(
            slots, slot_counts, table, num_tokens, num_tiles, first,
            NUM_SLOTS, TILE, GROUPS, BLOCK, PAIRS // GROUPS,
        )  # fmt: skip


def tile_size_for(num_tokens: int, most_used: int) -> int:
    """A tile holds half of an adapter's tokens if they are spread evenly."""
    half = next_power_of_two(num_tokens // max(most_used, 1)) // 2
    return min(max(half, MIN_TILE), MAX_TILE)


def make_tiles(slots: Tensor, num_slots: int, most_used: int, is_uniform: bool = False) -> Tiles:
    """``slots: [T], int32``, contiguous; no more than ``most_used`` different ones, or tokens are
    left out. Tiles have a size that suits the number of tokens, unless they are to be uniform."""
    num_tokens, device = slots.shape[0], slots.device
    size = MIN_TILE if is_uniform else tile_size_for(num_tokens, most_used)
    num_tiles = tiles_at_most(num_tokens, most_used, size)
    order = torch.empty(num_tokens, dtype=torch.int64, device=device)
    counts = torch.empty(num_slots, dtype=torch.int32, device=device)
    table = torch.empty(3, num_tiles, dtype=torch.int64, device=device)
    num_token_blocks = ceil_div(num_tokens, _BLOCK)
    groups = next_power_of_two(num_slots + 1)
    _tiles_program[(num_token_blocks + ceil_div(num_tiles, _BLOCK),)](
        slots,
        order,
        counts,
        table,
        num_tokens,
        num_tiles,
        num_token_blocks,
        NUM_SLOTS=num_slots,
        TILE=size,
        GROUPS=groups,
        BLOCK=_BLOCK,
        PAIRS=max(_PAIRS, 16 * groups),
        num_warps=4,
    )
    return Tiles(order, counts, table, size, most_used, is_uniform)

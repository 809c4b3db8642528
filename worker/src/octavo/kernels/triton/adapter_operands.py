"""What every program that applies adapters is given, in one order; and how it finds a matrix.

Knows the layout of :class:`octavo.kernels.adapters.AdapterStack` as programs see it.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.adapters import AdapterStack, Projection, padded_rank
from octavo.kernels.triton.adapter_tiles import MIN_TILE, Tiles
from octavo.kernels.triton.launch import INTERPRETED, next_power_of_two

_MAX_RANK_BLOCK = 64


@triton.jit
def locate(table, slot, index, NUM_PROJECTIONS: tl.constexpr):
    """Offset of a projection in a slot, and its rank there; multiples of 16."""
    entry = table + (slot * NUM_PROJECTIONS + index) * 2
    offset, rank = tl.load(entry), tl.load(entry + 1).to(tl.int32)
    return tl.multiple_of(offset, 16), tl.multiple_of(rank, 16)


@triton.jit
def tokens_of_tile(order, tiles, num_tiles, tile, TILE: tl.constexpr):
    """First place, places, which of them hold a token, and the tokens."""
    first = tl.load(tiles + num_tiles + tile)
    count = tl.load(tiles + 2 * num_tiles + tile)
    places = tl.arange(0, TILE)
    is_token = places < count
    tokens = tl.load(order + first + places, mask=is_token, other=0)
    return first, places, is_token, tokens


@dataclass(frozen=True, slots=True)
class Operands:
    """One product's adapters, for one step's tokens."""

    stack: AdapterStack
    index: int
    """Of the projection."""
    tiles: Tiles
    num_tokens: int

    @property
    def projection(self) -> Projection:
        return self.stack.projections[self.index]

    @property
    def storage_rank(self) -> int:
        """Columns a part has in what a shrink writes: whole blocks of any rank."""
        return next_power_of_two(padded_rank(self.stack.max_rank))

    @property
    def rank_block(self) -> int:
        """Rows of A, or columns of B, at a time."""
        return min(self.storage_rank, _MAX_RANK_BLOCK)

    @property
    def is_small(self) -> bool:
        """Whether programs that expand hold little: that grows with the tile and the rank."""
        return self.tiles.tile_size == MIN_TILE and self.storage_rank < _MAX_RANK_BLOCK

    @property
    def num_warps(self) -> int:
        """Of programs that expand."""
        return 4 if self.is_small else 8

    def arguments(self, shrunk: Tensor) -> tuple[Any, ...]:
        """Of every program, after the tensors that are its own."""
        stack, tiles = self.stack, self.tiles
        return (
            stack.storage,
            stack.table,
            tiles.order,
            tiles.table,
            shrunk,
            self.index,
            self.num_tokens,
            tiles.num_tiles,
            stack.storage.stride(0),
        )

    @property
    def constants(self) -> dict[str, Any]:
        """Of every program, beside those that are its own."""
        return {
            "IN": self.projection.in_features,
            "MAX_RANK": self.storage_rank,
            "NUM_PARTS": len(self.projection.names),
            "NUM_PROJECTIONS": len(self.stack.projections),
            "TILE": self.tiles.tile_size,
            "BLOCK_R": self.rank_block,
            "INTERPRETED": INTERPRETED,
        }

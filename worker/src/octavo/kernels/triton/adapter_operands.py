"""What every program that applies adapters is given, in one order; and how it finds a matrix.

Knows the layout of :class:`octavo.kernels.adapters.AdapterStack` as programs see it.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.adapters import AdapterStack, Projection, padded_rank
from octavo.kernels.triton.adapter_tiles import Tiles
from octavo.kernels.triton.launch import INTERPRETED, next_power_of_two


@triton.jit
def locate(table, slot, index, num_projections):
    """Where B of a projection begins in a slot, and its rank there; multiples of 16. Zeros for no
    slot."""
    is_slot = slot >= 0
    entry = table + (slot * num_projections + index) * 2
    offset = tl.load(entry, mask=is_slot, other=0)
    rank = tl.load(entry + 1, mask=is_slot, other=0).to(tl.int32)
    return tl.multiple_of(offset, 16), tl.multiple_of(rank, 16)


@triton.jit
def tokens_of_tile(order, tiles, num_tiles, tile, TILE: tl.constexpr):
    """First place, places, which of them hold a token, the tokens, and how many they are."""
    first = tl.load(tiles + num_tiles + tile)
    count = tl.load(tiles + 2 * num_tiles + tile)
    places = tl.arange(0, TILE)
    is_token = places < count
    tokens = tl.load(order + first + places, mask=is_token, other=0)
    return first, places, is_token, tokens, count


@triton.jit
def columns_of_part(part, OUT_0: tl.constexpr, OUT_1: tl.constexpr, OUT_2: tl.constexpr):
    """Where a part begins in the product, and its size."""
    begin = (part > 0).to(tl.int32) * OUT_0 + (part > 1).to(tl.int32) * OUT_1
    return begin, tl.where(part == 0, OUT_0, tl.where(part == 1, OUT_1, OUT_2))


@triton.jit
def rows_of_b(matrix, columns, is_column, rank, MAX_RANK: tl.constexpr):
    """Of B: ``[BLOCK_N, MAX_RANK]``, zeros past the rank."""
    ranks = tl.arange(0, MAX_RANK)
    return tl.load(
        matrix + columns[:, None] * rank + ranks[None, :],
        mask=is_column[:, None] & (ranks < rank)[None, :],
        other=0.0,
    )


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A x of a step's tokens; undefined where a token's adapter leaves the product alone."""

    values: Tensor
    """From a shrink: ``[splits, T, parts * storage_rank], float32``, in the order of the tiles, to
    be summed over the splits. From a product with A below its weights: ``[T, num_slots * parts *
    slot_rank]``, of which those columns of a token count that are its adapter's."""
    num_splits: int
    """0: from a product."""


@dataclass(frozen=True, slots=True)
class Operands:
    """One product's adapters, for one step's tokens."""

    stack: AdapterStack
    index: int
    """Of the projection."""
    tiles: Tiles
    num_tokens: int
    launch_options: Mapping[str, bool]
    """See :attr:`octavo.kernels.triton.launch.Machine.launch_options`."""

    @property
    def projection(self) -> Projection:
        return self.stack.projections[self.index]

    @property
    def slot_rank(self) -> int:
        """Rows a part has in A of a slot."""
        return padded_rank(self.stack.max_rank)

    @property
    def storage_rank(self) -> int:
        """Columns a part has in what a shrink writes: a power of two."""
        return next_power_of_two(self.slot_rank)

    @property
    def part_sizes(self) -> dict[str, int]:
        """Of every program that takes any part, as :func:`columns_of_part` wants them."""
        sizes = [*self.projection.out_features, 0, 0]
        return {f"OUT_{part}": sizes[part] for part in range(3)}

    def arguments(self, matrices: Tensor, shrunk: Tensor) -> tuple[Any, ...]:
        """Of every program, after the tensor that is its own. ``matrices``: A or B of all slots."""
        return (
            matrices,
            self.stack.table,
            self.tiles.order,
            self.tiles.table,
            shrunk,
            self.index,
            # No constant: programs are the same for any number of layers.
            len(self.stack.projections),
            self.num_tokens,
            self.tiles.num_tiles,
        )

    def expand_arguments(self, shrunk: Shrunk) -> tuple[Any, ...]:
        """Of every program that expands, after the product."""
        b, values = self.stack.b, shrunk.values
        return (*self.arguments(b, values), b.stride(0), values.stride(-2))

    def constants(self, num_splits: int) -> dict[str, Any]:
        """Of every program, beside those that are its own; and how it is launched."""
        return {
            "MAX_RANK": self.storage_rank,
            "SLOT_RANK": self.slot_rank,
            "NUM_PARTS": len(self.projection.names),
            "TILE": self.tiles.tile_size,
            "NUM_SPLITS": num_splits,
            "INTERPRETED": INTERPRETED,
            **self.launch_options,
        }

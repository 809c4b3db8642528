"""Products of few tokens with a weight matrix, bound by reading the weights.

The weights are then read at the memory's rate whatever is done with them, so what counts is how
early the reading starts and that no multiprocessor waits. One token needs no matrix instruction.
Several do, with the weights as the left operand, because that side's least size is 64 rows and
the other's 8. Nothing is split along the columns: a token's sum has one order whatever the number
of tokens beside it, but for the program of one token. More tokens than
:meth:`TritonLinear._serves` says go to the library, whose products are better there
(``benchmarks/kernels.py --only linear``).
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.interface import ChosenGroups, WeightPart
from octavo.kernels.reference import DenseLinear
from octavo.kernels.triton.launch import INTERPRETED, Machine, ceil_div, next_power_of_two
from octavo.kernels.triton.overlap import prefetch, wait_for_predecessors
from octavo.kernels.triton.pages import multiply

_TILE_ROWS = 64
_MAX_TILE_TOKENS = 64
_MIN_TILE_TOKENS = 16
_MAX_TOKENS = 256
_ONE_TOKEN_COLUMNS = 2048
_LINE_ELEMENTS = 64
"""Two-byte elements in a cache line of 128 bytes."""


@triton.jit
def _are_wanted(counts, first, num_rows, num_upper, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Whether any of the ``BLOCK`` rows from ``first`` on is. Below the upper rows stand groups of
    ``SIZE``, of which so many tokens each want the results."""
    groups = (first - num_upper) // SIZE + tl.arange(0, BLOCK)
    is_touched = groups * SIZE + num_upper < tl.minimum(first + BLOCK, num_rows)
    touched = tl.load(counts + groups, mask=is_touched & (first >= num_upper), other=0)
    return (first < num_upper) | (tl.max(touched, axis=0) > 0)


@triton.jit(do_not_specialize=["num_upper"])
def _one_token_program(
    x,
    weight,
    bias,
    chosen,
    out,
    num_upper,
    GROUP: tl.constexpr,
    IN_GROUPS: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program for ``BLOCK_ROWS`` rows of the weights; the first programs for those of the
    group below that the token chose, which they have to look up."""
    first_row, end = tl.program_id(0) * BLOCK_ROWS, num_upper
    if IN_GROUPS:
        num_below = tl.cdiv(GROUP, BLOCK_ROWS) * BLOCK_ROWS
        if first_row < num_below:
            group = tl.load(chosen)
            first_row += num_upper + group * GROUP
            end = tl.where(group < 0, 0, num_upper + (group + 1) * GROUP)
        else:
            first_row -= num_below
    rows = first_row + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    row_mask = rows < end
    lanes = tl.arange(0, BLOCK_ROWS)[:, None] * NUM_COLUMNS + columns[None, :]
    pointers = weight + tl.cast(first_row, tl.int64) * NUM_COLUMNS + lanes
    mask = row_mask[:, None] & (columns < NUM_COLUMNS)[None, :]
    # The first weights are on their way before the wait: they depend on nobody.
    tile = tl.load(pointers, mask=mask, other=0.0)
    wait_for_predecessors(OVERLAP)
    values = tl.load(x + columns, mask=columns < NUM_COLUMNS, other=0.0)
    sums = tile.to(tl.float32) * values.to(tl.float32)[None, :]
    for first in range(BLOCK_COLUMNS, NUM_COLUMNS, BLOCK_COLUMNS):
        here = first + columns < NUM_COLUMNS
        tile = tl.load(pointers + first, mask=row_mask[:, None] & here[None, :], other=0.0)
        values = tl.load(x + first + columns, mask=here, other=0.0)
        sums += tile.to(tl.float32) * values.to(tl.float32)[None, :]
    result = tl.sum(sums, axis=1)
    if HAS_BIAS:
        result += tl.load(bias + rows, mask=row_mask, other=0.0).to(tl.float32)
    tl.store(out + rows, result.to(out.dtype.element_ty), mask=row_mask)


@triton.jit(do_not_specialize=["num_tokens", "num_rows", "num_upper"])
def _few_tokens_program(
    x_tiles,
    weight_tiles,
    weight,
    bias,
    counts,
    out,
    num_tokens,
    num_rows,
    num_upper,
    GROUP: tl.constexpr,
    IN_GROUPS: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PREFETCHED_LINES: tl.constexpr,
    LINE_ELEMENTS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program for ``BLOCK_ROWS`` rows of the weights and ``BLOCK_TOKENS`` tokens."""
    # Tiles of the same rows run side by side, so the weights come from memory once.
    # The last begins earlier where it would not be full: rows past the end cost more than those
    # that are computed twice, to the same bits.
    first_token = tl.minimum(
        tl.program_id(0) * BLOCK_TOKENS, tl.maximum(num_tokens - BLOCK_TOKENS, 0)
    )
    first_row = tl.program_id(1) * BLOCK_ROWS
    rows = first_row + tl.arange(0, BLOCK_ROWS)
    row_offsets = tl.minimum(rows, num_rows - 1).to(tl.int64)[:, None] * NUM_COLUMNS
    lines = tl.arange(0, PREFETCHED_LINES)[None, :] * LINE_ELEMENTS
    num_columns = NUM_COLUMNS
    if IN_GROUPS:
        is_wanted = _are_wanted(counts, first_row, num_rows, num_upper, GROUP, BLOCK_ROWS)
        num_columns = tl.where(is_wanted, NUM_COLUMNS, 0)
    if num_columns > 0:
        prefetch(weight + row_offsets + lines, OVERLAP)
    wait_for_predecessors(OVERLAP)
    sums = tl.zeros([BLOCK_ROWS, BLOCK_TOKENS], tl.float32)
    for column in range(0, num_columns, BLOCK_COLUMNS):
        tile = weight_tiles.load([first_row, column])
        values = x_tiles.load([first_token, column])
        sums += multiply(tile, tl.trans(values), INTERPRETED)
    tokens = first_token + tl.arange(0, BLOCK_TOKENS)
    if HAS_BIAS:
        added = tl.load(bias + rows, mask=rows < num_rows, other=0.0).to(tl.float32)
        sums += added[:, None]
    pointers = out + tokens.to(tl.int64)[:, None] * num_rows + rows[None, :]
    mask = (tokens < num_tokens)[:, None] & (rows < num_rows)[None, :]
    tl.store(pointers, tl.trans(sums).to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Rows that need not all be computed: those from ``num_upper`` on, by groups of ``size``
    (0: there are none)."""

    chosen: ChosenGroups
    num_upper: int
    size: int

    @property
    def num_computed(self) -> int:
        """Rows, the upper ones among them, that are computed at most."""
        return self.num_upper + self.size * self.chosen.most

    @property
    def constants(self) -> dict[str, int | bool]:
        return {"GROUP": self.size, "IN_GROUPS": self.size > 0}


class TritonLinear(DenseLinear):
    """A dense product that chooses its program by the number of tokens."""

    def __init__(self, weight: Tensor, bias: Tensor | None, machine: Machine) -> None:
        """``weight: [out_features, in_features]``; ``bias: [out_features]``, same dtype."""
        super().__init__(weight, bias)
        self._machine = machine
        self._whole, self._whole_bias = weight, bias
        """With the rows below."""
        # Two bytes an element, and rows that start where the copy engine can read.
        self._is_readable = (
            machine.has_warpgroup_products
            and weight.element_size() == 2
            and weight.shape[1] % 8 == 0
            and weight.data_ptr() % 16 == 0
        )

    @classmethod
    def of(
        cls,
        parts: Sequence[WeightPart],
        bias: Tensor | None,
        dtype: torch.dtype,
        machine: Machine,
    ) -> TritonLinear:
        """Merge the parts' outputs; raises as :meth:`DenseLinear.merge`."""
        dense = DenseLinear.merge(parts, bias, dtype)
        return cls(dense.weight, dense.bias, machine)

    @property
    def num_rows_below(self) -> int:
        return self._whole.shape[0] - self.weight.shape[0]

    def append_rows(self, num_rows: int) -> Tensor:
        """Move the weights to where so many rows stand below them: ``[num_rows, in_features]``,
        uninitialised, for :meth:`with_rows_below`."""
        out_features, in_features = self.weight.shape
        self._whole = self.weight.new_empty(out_features + num_rows, in_features)
        self._whole[:out_features] = self.weight
        self.weight = self._whole[:out_features]
        if self.bias is not None:
            self._whole_bias = F.pad(self.bias, (0, num_rows))
        return self._whole[out_features:]

    def with_rows_below(self, x: Tensor, groups: ChosenGroups) -> Tensor:
        """See :class:`octavo.kernels.interface.WidenableLinear`."""
        return self._product(x, self._whole, self._whole_bias, self._groups(groups))

    def serves_below(self, num_tokens: int, groups: ChosenGroups) -> bool:
        """Whether the programs here take that; they leave out what nobody chose."""
        return self._serves(num_tokens, self._groups(groups).num_computed)

    def _groups(self, chosen: ChosenGroups) -> _Groups:
        return _Groups(chosen, self.weight.shape[0], self.num_rows_below // len(chosen.counts))

    def _serves(self, num_tokens: int, num_rows: int) -> bool:
        """Whether the programs here take a product of so many tokens and rows.

        Up to one tile of tokens they do. Above, two and more tiles read the same weights, which
        pays as long as every tile has a multiprocessor of its own: narrow matrices.
        """
        if not self._is_readable or not 0 < num_tokens <= _MAX_TOKENS:
            return False
        token_tiles = ceil_div(num_tokens, _MAX_TILE_TOKENS)
        num_tiles = ceil_div(num_rows, _TILE_ROWS) * token_tiles
        return num_tokens <= _MAX_TILE_TOKENS or num_tiles <= self._machine.num_multiprocessors

    def __call__(self, x: Tensor) -> Tensor:
        nothing = ChosenGroups(self.weight, self.weight, 0)
        groups = _Groups(nothing, self.weight.shape[0], 0)
        return self._product(x, self.weight, self.bias, groups)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: _Groups) -> Tensor:
        if not self._serves(x.shape[0], groups.num_computed):
            return F.linear(x, weight, bias)
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
        launch = _multiply_one_token if x.shape[0] == 1 else _multiply_few_tokens
        launch(x.contiguous(), weight, bias, groups, out, self._machine)
        return out


def _multiply_one_token(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: _Groups,
    out: Tensor,
    machine: Machine,
) -> None:
    num_rows, num_columns = groups.num_upper, weight.shape[1]
    # Several short rows a program where there are many; one where the rows are few or long.
    block_rows = 4 if num_columns <= 4096 <= num_rows else 1
    num_programs = ceil_div(num_rows, block_rows) + ceil_div(groups.size, block_rows)
    _one_token_program[(num_programs,)](
        x,
        weight,
        weight if bias is None else bias,
        groups.chosen.of_tokens,
        out,
        num_rows,
        **groups.constants,
        NUM_COLUMNS=num_columns,
        HAS_BIAS=bias is not None,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=min(_ONE_TOKEN_COLUMNS, next_power_of_two(num_columns)),
        num_warps=4,
        **machine.launch_options,
    )


def _multiply_few_tokens(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: _Groups,
    out: Tensor,
    machine: Machine,
) -> None:
    num_tokens, num_columns = x.shape
    num_rows = weight.shape[0]
    block_tokens = min(_MAX_TILE_TOKENS, max(_MIN_TILE_TOKENS, next_power_of_two(num_tokens)))
    # As many bytes of weights under way as shared memory holds beside the tokens' values.
    block_columns, num_stages = {16: (256, 5), 32: (256, 4), 64: (128, 6)}[block_tokens]
    num_tiles = (ceil_div(num_tokens, block_tokens), ceil_div(num_rows, _TILE_ROWS))
    _few_tokens_program[num_tiles](
        TensorDescriptor(
            x, [num_tokens, num_columns], [num_columns, 1], [block_tokens, block_columns]
        ),
        TensorDescriptor(
            weight, [num_rows, num_columns], [num_columns, 1], [_TILE_ROWS, block_columns]
        ),
        weight,
        weight if bias is None else bias,
        groups.chosen.counts,
        out,
        num_tokens,
        num_rows,
        groups.num_upper,
        **groups.constants,
        NUM_COLUMNS=num_columns,
        HAS_BIAS=bias is not None,
        BLOCK_TOKENS=block_tokens,
        BLOCK_ROWS=_TILE_ROWS,
        BLOCK_COLUMNS=block_columns,
        PREFETCHED_LINES=1 << min(3, max(0, (num_columns // _LINE_ELEMENTS).bit_length() - 1)),
        LINE_ELEMENTS=_LINE_ELEMENTS,
        INTERPRETED=INTERPRETED,
        num_warps=4,
        num_stages=num_stages,
        **machine.launch_options,
    )

"""LoRA for every token of a step at once: shrink (A x), then expand (B of that) into the product.

Tokens are sorted by adapter on the device and cut into tiles of one adapter each, so each tile is
a small matrix product and no launch depends on device data: the same launches serve captured
decode steps and eager prefills. All parts of a merged product (q, k, v; gate, up) share one
launch of each kind. What adapters add to gate and up is added by the activation that reads them
anyway, which saves reading and writing that product once more.

In a captured step the shrink of a product runs beside the product itself, on a branch of the
graph: it needs the same input and nothing else, and a decode step's products wait for memory.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.adapters import AdapterStack, AdapterStep, Projection, tiles_at_most
from octavo.kernels.interface import Linear
from octavo.kernels.triton.launch import INTERPRETED, next_power_of_two
from octavo.kernels.triton.pages import multiply

_MIN_TILE, _MAX_TILE = 16, 64
_MAX_RANK_BLOCK = 64
_BLOCK_K = 128
_BLOCK_N = 128
_GATED_BLOCK_N = {16: 128, 32: 128, 64: 64}
"""By tile: two sums are held at once."""
_SPLITS = {16: 8, 32: 4, 64: 2}
"""By tile: how often a shrink's input is split, for more programs. Not more often: shrinks have
the time of the product beside them, and every expanding program reads all splits of its
tokens."""


@triton.jit
def _locate(table, slot, index, NUM_PROJECTIONS: tl.constexpr):
    """Offset of a projection in a slot, and its rank there; a multiple of 16."""
    entry = table + (slot * NUM_PROJECTIONS + index) * 2
    offset, rank = tl.load(entry), tl.load(entry + 1).to(tl.int32)
    return tl.multiple_of(offset, 16), tl.multiple_of(rank, 16)


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
    x_stride,
    slot_stride,
    IN: tl.constexpr,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """``shrunk[split, token in order, part * MAX_RANK + r]`` for one tile, block of a part's rank
    and share of the input."""
    tile = tl.program_id(1)
    slot = tl.load(tiles + tile)
    if slot < 0:
        return
    offset, rank = _locate(table, slot, index, NUM_PROJECTIONS)
    blocks_of_part: tl.constexpr = MAX_RANK // BLOCK_R
    part = tl.program_id(0) // blocks_of_part
    ranks = (tl.program_id(0) % blocks_of_part) * BLOCK_R + tl.arange(0, BLOCK_R)
    if (tl.program_id(0) % blocks_of_part) * BLOCK_R >= rank:
        return
    first = tl.load(tiles + num_tiles + tile)
    count = tl.load(tiles + 2 * num_tiles + tile)
    places = tl.arange(0, TILE)
    is_token = places < count
    tokens = tl.load(order + first + places, mask=is_token, other=0)
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
    target = shrunk + (split.to(tl.int64) * num_tokens + first + places[:, None]) * width
    target += part * MAX_RANK + ranks[None, :]
    tl.store(target, total, mask=is_token[:, None])


@triton.jit
def _added(
    shrunk,
    matrix,
    first,
    places,
    is_token,
    columns,
    is_column,
    num_tokens,
    rank,
    part,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """What an adapter adds to ``columns`` of one part: ``[TILE, BLOCK_N], float32``."""
    width: tl.constexpr = NUM_PARTS * MAX_RANK
    total = tl.zeros((TILE, BLOCK_N), tl.float32)
    # Nothing to read ahead: nearly all adapters are one block wide.
    for block in tl.range(0, rank, BLOCK_R, num_stages=1):
        ranks = block + tl.arange(0, BLOCK_R)
        is_rank = ranks < rank
        source = shrunk + (first + places[:, None]) * width + part * MAX_RANK + ranks[None, :]
        inner = tl.zeros((TILE, BLOCK_R), tl.float32)
        for split in tl.static_range(NUM_SPLITS):
            inner += tl.load(
                source + split * num_tokens.to(tl.int64) * width,
                mask=is_token[:, None] & is_rank[None, :],
                other=0.0,
            )
        rows = tl.load(
            matrix + columns[:, None] * rank + ranks[None, :],
            mask=is_column[:, None] & is_rank[None, :],
            other=0.0,
        )
        total += multiply(inner.to(rows.dtype), tl.trans(rows), INTERPRETED)
    return total


@triton.jit(do_not_specialize=["index", "num_tokens", "num_tiles"])
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
    IN: tl.constexpr,
    OUT_0: tl.constexpr,
    OUT_1: tl.constexpr,
    OUT_2: tl.constexpr,
    MAX_RANK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """``y[token, n] += ...`` for one tile and one block of one part's columns."""
    tile = tl.program_id(1)
    slot = tl.load(tiles + tile)
    if slot < 0:
        return
    offset, rank = _locate(table, slot, index, NUM_PROJECTIONS)
    if rank == 0:
        return
    first = tl.load(tiles + num_tiles + tile)
    count = tl.load(tiles + 2 * num_tiles + tile)
    blocks_0: tl.constexpr = (OUT_0 + BLOCK_N - 1) // BLOCK_N
    blocks_1: tl.constexpr = (OUT_1 + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0)
    past_0 = (block >= blocks_0).to(tl.int32)
    past_1 = (block >= blocks_0 + blocks_1).to(tl.int32)
    part = past_0 + past_1
    begin = past_0 * OUT_0 + past_1 * OUT_1
    size = OUT_0 + past_0 * (OUT_1 - OUT_0) + past_1 * (OUT_2 - OUT_1)
    block -= past_0 * blocks_0 + past_1 * blocks_1
    inside = block * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = inside < size
    columns = begin + inside
    places = tl.arange(0, TILE)
    is_token = places < count
    tokens = tl.load(order + first + places, mask=is_token, other=0)
    matrix = storage + slot * slot_stride + offset + NUM_PARTS * IN * rank
    added = _added(
        shrunk, matrix, first, places, is_token, columns, is_column, num_tokens, rank, part,
        MAX_RANK, NUM_PARTS, TILE, BLOCK_N, BLOCK_R, NUM_SPLITS, INTERPRETED,
    )  # fmt: skip
    out: tl.constexpr = OUT_0 + OUT_1 + OUT_2
    pointers = y + tokens[:, None] * out + columns[None, :]
    mask = is_token[:, None] & is_column[None, :]
    result = tl.load(pointers, mask=mask, other=0.0).to(tl.float32) + added
    tl.store(pointers, result.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["index", "num_tokens", "num_tiles"])
def _gated_expand_program(
    gate_up,
    out,
    storage,
    table,
    order,
    tiles,
    shrunk,
    index,
    num_tokens,
    num_tiles,
    slot_stride,
    IN: tl.constexpr,
    SIZE: tl.constexpr,
    MAX_RANK: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    IS_SILU: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """``out = activation(gate + ...) * (up + ...)``; tiles of tokens without an adapter too."""
    tile = tl.program_id(1)
    count = tl.load(tiles + 2 * num_tiles + tile)
    if count == 0:
        return
    slot = tl.load(tiles + tile)
    first = tl.load(tiles + num_tiles + tile)
    places = tl.arange(0, TILE)
    is_token = places < count
    tokens = tl.load(order + first + places, mask=is_token, other=0)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = columns < SIZE
    mask = is_token[:, None] & is_column[None, :]
    pointers = gate_up + tokens[:, None] * (2 * SIZE) + columns[None, :]
    gate = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(pointers + SIZE, mask=mask, other=0.0).to(tl.float32)
    if slot >= 0:
        offset, rank = _locate(table, slot, index, NUM_PROJECTIONS)
        matrix = storage + slot * slot_stride + offset + 2 * IN * rank
        gate += _added(
            shrunk, matrix, first, places, is_token, columns, is_column, num_tokens, rank, 0,
            MAX_RANK, 2, TILE, BLOCK_N, BLOCK_R, NUM_SPLITS, INTERPRETED,
        )  # fmt: skip
        up += _added(
            shrunk, matrix, first, places, is_token, columns + SIZE, is_column, num_tokens, rank, 1,
            MAX_RANK, 2, TILE, BLOCK_N, BLOCK_R, NUM_SPLITS, INTERPRETED,
        )  # fmt: skip
    argument = gate
    if not IS_SILU:
        # gelu_tanh(x) = x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3))
        argument = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    activated = gate / (1.0 + tl.exp(-tl.maximum(argument, -80.0)))
    target = out + tokens[:, None] * SIZE + columns[None, :]
    tl.store(target, (activated * up).to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True, slots=True)
class Tiles:
    """A step's tokens by adapter, on the device.

    ``order: [T], int64``: tokens sorted by slot, those without an adapter first.
    ``table: [3, num_tiles], int64``: of each tile its slot (-1: no adapter), the first place in
    ``order`` and the number of tokens (0: the tile is not needed).
    """

    order: Tensor
    table: Tensor
    tile_size: int

    @property
    def num_tiles(self) -> int:
        return self.table.shape[1]


def tile_size_for(num_tokens: int, num_slots: int) -> int:
    """A tile holds an adapter's tokens if they are spread evenly."""
    share = next_power_of_two(num_tokens // max(num_slots, 1))
    return min(max(share, _MIN_TILE), _MAX_TILE)


def make_tiles(slots: Tensor, num_slots: int) -> Tiles:
    """Sort and cut: ``slots: [T], int32``. Nothing waits for the device."""
    num_tokens, device = slots.shape[0], slots.device
    size = tile_size_for(num_tokens, num_slots)
    num_tiles = tiles_at_most(num_tokens, num_slots, size)
    ordered, order = torch.sort(slots, stable=True)
    # Groups 0 to num_slots: no adapter, then each slot. One more bound than groups.
    names = torch.arange(-1, num_slots + 1, dtype=slots.dtype, device=device)
    bounds = torch.searchsorted(ordered, names)
    counts = bounds[1:] - bounds[:-1]
    tiles = (counts + (size - 1)) // size
    ends = tiles.cumsum(0)
    tile = torch.arange(num_tiles, device=device)
    group = torch.searchsorted(ends, tile, right=True)
    is_needed = group <= num_slots
    group = group.clamp_max(num_slots)
    first = bounds[group] + (tile - (ends - tiles)[group]) * size
    count = torch.minimum(bounds[1:][group] - first, torch.full_like(first, size))
    table = torch.stack(
        [
            torch.where(is_needed, group - 1, -1),
            first.masked_fill(~is_needed, 0),
            count.masked_fill(~is_needed, 0),
        ]
    )
    return Tiles(order, table, size)


class TritonAdapters:
    """:class:`octavo.kernels.adapters.Adapters` for NVIDIA GPUs (or Triton's interpreter)."""

    def __init__(self, stack: AdapterStack) -> None:
        self._stack = stack
        self._branch: torch.cuda.Stream | None = None
        if stack.storage.is_cuda:
            self._branch = torch.cuda.Stream(stack.storage.device)

    def step(self, slots: Tensor) -> AdapterStep:
        is_captured = slots.is_cuda and torch.cuda.is_current_stream_capturing()
        tiles = make_tiles(slots, self._stack.num_slots)
        return TritonStep(self._stack, tiles, self._branch if is_captured else None)


@dataclass(frozen=True, slots=True)
class TritonStep:
    """Launches. ``branch``: where shrinks run beside the products; None: before them."""

    stack: AdapterStack
    tiles: Tiles
    branch: torch.cuda.Stream | None = None

    def project(self, index: int, linear: Linear, x: Tensor) -> Tensor:
        y, shrunk = self._both(index, linear, x)
        expand(y, shrunk, self.stack, index, self.tiles)
        return y

    def project_gated(self, index: int, linear: Linear, x: Tensor, is_silu: bool) -> Tensor:
        gate_up, shrunk = self._both(index, linear, x)
        return gated_expand(gate_up, shrunk, self.stack, index, self.tiles, is_silu)

    def _both(self, index: int, linear: Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.branch is None:
            shrunk = shrink(x, self.stack, index, self.tiles)
            return linear(x), shrunk
        main = torch.cuda.current_stream(x.device)
        self.branch.wait_stream(main)
        with torch.cuda.stream(self.branch):
            shrunk = shrink(x, self.stack, index, self.tiles)
        y = linear(x)
        main.wait_stream(self.branch)
        return y, shrunk


def shrink(x: Tensor, stack: AdapterStack, index: int, tiles: Tiles) -> Tensor:
    """``x: [T, in_features]``, rows contiguous → ``[splits, T, parts * max_rank], float32``, in
    the order of the tiles; sums over the splits are A x. Undefined where there is no adapter."""
    projection = stack.projections[index]
    num_tokens, num_parts = x.shape[0], len(projection.names)
    block_r = min(next_power_of_two(stack.max_rank), _MAX_RANK_BLOCK)
    blocks = num_parts * triton.cdiv(_storage_rank(stack), block_r)
    num_splits = _num_splits(projection, tiles)
    width = num_parts * _storage_rank(stack)
    shrunk = torch.empty(num_splits, num_tokens, width, dtype=torch.float32, device=x.device)
    _shrink_program[(blocks, tiles.num_tiles, num_splits)](
        x,
        stack.storage,
        stack.table,
        tiles.order,
        tiles.table,
        shrunk,
        index,
        num_tokens,
        tiles.num_tiles,
        x.stride(0),
        stack.storage.stride(0),
        IN=projection.in_features,
        MAX_RANK=_storage_rank(stack),
        NUM_PARTS=num_parts,
        NUM_PROJECTIONS=len(stack.projections),
        TILE=tiles.tile_size,
        BLOCK_R=block_r,
        BLOCK_K=_BLOCK_K,
        NUM_SPLITS=num_splits,
        INTERPRETED=INTERPRETED,
        num_warps=4,
        num_stages=3,
    )
    return shrunk


def expand(y: Tensor, shrunk: Tensor, stack: AdapterStack, index: int, tiles: Tiles) -> None:
    """Add to ``y: [T, out_features]``, contiguous, in place."""
    projection = stack.projections[index]
    sizes = [*projection.out_features, 0, 0][:3]
    blocks = sum(triton.cdiv(size, _BLOCK_N) for size in sizes)
    assert y.is_contiguous()
    _expand_program[(blocks, tiles.num_tiles)](
        y,
        stack.storage,
        stack.table,
        tiles.order,
        tiles.table,
        shrunk,
        index,
        y.shape[0],
        tiles.num_tiles,
        stack.storage.stride(0),
        IN=projection.in_features,
        OUT_0=sizes[0],
        OUT_1=sizes[1],
        OUT_2=sizes[2],
        MAX_RANK=_storage_rank(stack),
        NUM_PARTS=len(projection.names),
        NUM_PROJECTIONS=len(stack.projections),
        TILE=tiles.tile_size,
        BLOCK_N=_BLOCK_N,
        BLOCK_R=min(_storage_rank(stack), _MAX_RANK_BLOCK),
        NUM_SPLITS=shrunk.shape[0],
        INTERPRETED=INTERPRETED,
        num_warps=_num_warps(tiles, stack),
        num_stages=1,
    )


def gated_expand(
    gate_up: Tensor, shrunk: Tensor, stack: AdapterStack, index: int, tiles: Tiles, is_silu: bool
) -> Tensor:
    """``gate_up: [T, 2 * size]``, contiguous → ``[T, size]``."""
    projection = stack.projections[index]
    size = projection.out_features[0]
    assert gate_up.is_contiguous()
    out = torch.empty(gate_up.shape[0], size, dtype=gate_up.dtype, device=gate_up.device)
    block_n = _GATED_BLOCK_N[tiles.tile_size]
    _gated_expand_program[(triton.cdiv(size, block_n), tiles.num_tiles)](
        gate_up,
        out,
        stack.storage,
        stack.table,
        tiles.order,
        tiles.table,
        shrunk,
        index,
        gate_up.shape[0],
        tiles.num_tiles,
        stack.storage.stride(0),
        IN=projection.in_features,
        SIZE=size,
        MAX_RANK=_storage_rank(stack),
        NUM_PROJECTIONS=len(stack.projections),
        TILE=tiles.tile_size,
        BLOCK_N=block_n,
        BLOCK_R=min(_storage_rank(stack), _MAX_RANK_BLOCK),
        NUM_SPLITS=shrunk.shape[0],
        IS_SILU=is_silu,
        INTERPRETED=INTERPRETED,
        num_warps=_num_warps(tiles, stack),
        num_stages=1,
    )
    return out


def _num_warps(tiles: Tiles, stack: AdapterStack) -> int:
    """Of programs that expand: what they hold grows with the tile and the rank."""
    return 4 if tiles.tile_size == _MIN_TILE and _storage_rank(stack) < _MAX_RANK_BLOCK else 8


def _storage_rank(stack: AdapterStack) -> int:
    """Columns a part has in what a shrink writes: whole blocks of any rank."""
    return next_power_of_two(stack.max_rank)


def _num_splits(projection: Projection, tiles: Tiles) -> int:
    """Shares of the input; of a power of two, so that few programs are compiled."""
    most = min(_SPLITS[tiles.tile_size], -(-projection.in_features // _BLOCK_K))
    return 1 << (most.bit_length() - 1)

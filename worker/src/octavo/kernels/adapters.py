"""LoRA's part of the contract between models and the device, and its plain torch twin.

Knows where the matrices of an adapter lie and how they are applied to a step's tokens; knows
nothing of files, names or requests. An adapter adds ``scaling * B (A x)`` to a product ``W x``
(Hu et al., arXiv:2106.09685); the scaling is folded into B when an adapter is read. Base weights
are never changed, so tokens of many adapters and of none share one step.

Memory: a *slot* holds one adapter, its ranks padded. Products that share their input are merged as
the model merges them. A of all slots is one matrix for each product, ``[num_slots * parts *
max_rank, in_features]``: where a backend can, its rows stand below the weights of the product,
which then gives ``A x`` beside ``W x``. B of a slot is one run of numbers, ``[sum(out_features),
rank]`` of each product, of the adapter's own rank: a small adapter is read as what it is.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels.interface import Kernels, Linear

RANK_MULTIPLE = 16
"""Ranks are padded with zeros to this: the least a tensor core multiplies by."""
_MAX_LANDING_BYTES = 64 << 20
NO_ADAPTER = -1
"""The slot of a token without an adapter."""


@dataclass(frozen=True, slots=True)
class Projection:
    """Matrices of one layer that share their input, as the model merges them.

    With tensor parallelism these are the sizes of one rank's share.
    """

    layer: int
    names: tuple[str, ...]
    """Of the parts, within the layer: ``self_attn.q_proj`` and so on."""
    in_features: int
    out_features: tuple[int, ...]

    def num_elements(self, rank: int) -> int:
        """What an adapter of this (padded) rank keeps for it."""
        return rank * (len(self.names) * self.in_features + sum(self.out_features))


def padded_rank(rank: int) -> int:
    """The rank as it is stored; 0 stays 0."""
    return -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE


@dataclass(frozen=True, slots=True)
class Packing:
    """One adapter as one run of numbers: B of every projection, then A of every projection."""

    projections: tuple[Projection, ...]
    ranks: tuple[int, ...]
    """Padded, of each projection; 0: the adapter leaves it alone."""

    @property
    def size(self) -> int:
        """Elements of the run."""
        return sum(map(Projection.num_elements, self.projections, self.ranks))

    @property
    def b_size(self) -> int:
        """Elements of all B."""
        return sum(self._b_sizes())

    @property
    def table(self) -> list[tuple[int, int]]:
        """Of each projection: where its B begins, and its rank."""
        return list(zip(accumulate(self._b_sizes(), initial=0), self.ranks, strict=False))

    def cut(self, run: Tensor, table: Tensor) -> PackedAdapter:
        """A run of such numbers, ready to be copied; ``table``: :attr:`table` as a tensor."""
        sizes_of_a = tuple(
            rank * projection.in_features
            for projection, rank in zip(self.projections, self.ranks, strict=True)
            for _ in projection.names
        )
        return PackedAdapter(run[self.b_size : self.size], sizes_of_a, run[: self.b_size], table)

    def matrices(self, run: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of each projection's ``A: [parts, rank, in_features]`` and ``B: [sum(out_features),
        rank]``."""
        b_sizes = self._b_sizes()
        a_sizes = [
            rank * len(projection.names) * projection.in_features
            for projection, rank in zip(self.projections, self.ranks, strict=True)
        ]
        runs = torch.split(run[: self.size], [*b_sizes, *a_sizes])
        count = len(self.projections)
        for projection, rank, a, b in zip(
            self.projections, self.ranks, runs[count:], runs[:count], strict=True
        ):
            num_parts, out_features = len(projection.names), sum(projection.out_features)
            yield a.view(num_parts, rank, projection.in_features), b.view(out_features, rank)

    def _b_sizes(self) -> list[int]:
        return [
            rank * sum(projection.out_features)
            for projection, rank in zip(self.projections, self.ranks, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter in host memory, ready to be copied to a slot."""

    a: Tensor
    """Of all projections: one run of numbers."""
    sizes_of_a: tuple[int, ...]
    """Numbers of each part's A in turn; 0: the adapter leaves it alone."""
    b: Tensor
    """Of all projections: one run of numbers."""
    table: Tensor
    """``[num_projections, 2], int64``: where each B begins in the run, and its rank."""

    def batches_of_a(self, limit: int) -> Iterator[tuple[int, int, Tensor]]:
        """Parts that follow each other and have no more than ``limit`` numbers together, but one at
        least: the first, the one after the last, and their A."""
        first = begin = end = 0
        for part, size in enumerate(self.sizes_of_a):
            if end > begin and end + size - begin > limit:
                yield first, part, self.a[begin:end]
                first, begin = part, end
            end += size
        yield first, len(self.sizes_of_a), self.a[begin:end]


@dataclass(frozen=True, slots=True)
class AdapterStack:
    """The adapters on a device, in the model's dtype (float32 on the CPU).

    ``a``, for each projection: ``[num_slots, parts, padded max_rank, in_features]``;
    ``b: [num_slots, size]``; ``table: [num_slots, num_projections, 2], int64``: where B begins in
    the slot's run, and the rank; a rank of 0 says that the adapter leaves this product alone.
    What is past a rank is left as it is.
    """

    projections: tuple[Projection, ...]
    max_rank: int
    """That an adapter may have; a slot holds its padding."""
    a: tuple[Tensor, ...]
    b: Tensor
    table: Tensor
    a_of_slots: tuple[tuple[Tensor, ...], ...]
    """For each slot the ``[padded max_rank * in_features]`` of each part of each ``a``: to cut them
    out took a fill longer than its copies."""
    landing: Tensor | None
    """``[N]``: where A comes to the device, before it is spread over the projections' memories;
    None: on the CPU."""

    @classmethod
    def allocate(
        cls,
        projections: Sequence[Projection],
        num_slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
        rows: Callable[[int, int], Tensor | None] = lambda index, num_rows: None,
    ) -> AdapterStack:
        """Room for ``num_slots`` adapters of up to ``max_rank``; none is there yet.

        ``rows(index, num_rows)``: the rows that a projection's product has for A, if it has any.
        """
        rank = padded_rank(max_rank)
        # Left uninitialised: on the CPU pages are then mapped when first written.
        a = []
        for index, projection in enumerate(projections):
            shape = (num_slots, len(projection.names), rank, projection.in_features)
            own = rows(index, math.prod(shape[:3]))
            if own is None:
                own = torch.empty(shape, dtype=dtype, device=device)
            a.append(own.view(shape))
        largest = Packing(tuple(projections), (rank,) * len(projections))
        b = torch.empty(num_slots, largest.b_size, dtype=dtype, device=device)
        table = torch.zeros(num_slots, len(projections), 2, dtype=torch.int64, device=device)
        a_of_slots = tuple(
            tuple(part for own in a for part in own[slot].view(own.shape[1], -1))
            for slot in range(num_slots)
        )
        landing = None
        if device.type == "cuda":
            sizes = [part.numel() for part in a_of_slots[0]]
            most = max(max(sizes), min(sum(sizes), _MAX_LANDING_BYTES // dtype.itemsize))
            landing = torch.empty(most, dtype=dtype, device=device)
        return cls(largest.projections, max_rank, tuple(a), b, table, a_of_slots, landing)

    @property
    def num_slots(self) -> int:
        return self.b.shape[0]

    @property
    def slot_size(self) -> int:
        """Elements of the largest adapter."""
        return sum(a[0].numel() for a in self.a) + self.b.shape[1]

    @property
    def size_bytes(self) -> int:
        return self.num_slots * self.slot_size * self.b.element_size()

    def write(self, slot: int, adapter: PackedAdapter) -> None:
        """Copy an adapter into a slot; from pinned memory without waiting for the device.

        Each part has its rows of A in a memory of its own. To copy each from the host took 130
        calls, in which the loop waited for threads that read others: so A comes in one, and is
        spread from there. Writes of one stream at a time.
        """
        self.b[slot, : len(adapter.b)].copy_(adapter.b, non_blocking=True)
        self.table[slot].copy_(adapter.table, non_blocking=True)
        limit = len(adapter.a) if self.landing is None else len(self.landing)
        for first, end, a in adapter.batches_of_a(limit):
            if self.landing is not None:
                a = self.landing[: len(a)].copy_(a, non_blocking=True)
            sizes = list(adapter.sizes_of_a[first:end])
            targets, sources = [], []
            parts = zip(self.a_of_slots[slot][first:end], torch.split(a, sizes), sizes, strict=True)
            for target, source, size in parts:
                if size:
                    targets.append(target if target.numel() == size else target[:size])
                    sources.append(source)
            if targets:
                torch._foreach_copy_(targets, sources)


def rows_of_parts(b: Tensor, projection: Projection) -> tuple[Tensor, ...]:
    """The rows of B by part."""
    return torch.split(b, list(projection.out_features))


class AdapterUse(enum.Enum):
    """How many of the slots a step's tokens use, as far as its launches depend on that."""

    NONE = "none"
    FEW = "few"
    MANY = "many"


class AdapterStep(Protocol):
    """The adapters of one step's tokens; handed down through the model."""

    def project(self, index: int, linear: Linear, x: Tensor) -> Tensor:
        """``linear(x)`` with what each token's adapter adds to it.

        ``index`` counts the model's projections. ``x: [T, in_features]`` → ``[T, out_features]``,
        rows contiguous.
        """

    def project_gated(self, index: int, linear: Linear, x: Tensor, is_silu: bool) -> Tensor:
        """The same for a merged gate and up, and the gate's activation: ``[T, size]``.

        SiLU, or else GELU in its tanh form.
        """

    def of(self, tokens: Tensor) -> AdapterStep:
        """The same for some of the tokens: ``[N], int64``."""


class Adapters(Protocol):
    """One implementation of the above, over one stack; how many slots a step uses makes no
    difference unless it says so."""

    @property
    def uses(self) -> Sequence[AdapterUse]:
        """Which make a difference here, beside none."""
        return (AdapterUse.MANY,)

    def use_of(self, num_slots: int) -> AdapterUse:
        """Of a step whose tokens use so many different slots."""
        return AdapterUse.MANY if num_slots else AdapterUse.NONE

    def step(self, slots: Tensor, use: AdapterUse = AdapterUse.MANY) -> AdapterStep:
        """``slots: [T], int32``: of each token; :data:`NO_ADAPTER` for those without.

        ``use``: by what launches it is computed may depend on it, as on the number of tokens.
        """


class TorchAdapters(Adapters):
    """:class:`Adapters` in plain torch: the truth that others are compared with."""

    def __init__(self, stack: AdapterStack, kernels: Kernels) -> None:
        self._stack = stack
        self._kernels = kernels

    def step(self, slots: Tensor, use: AdapterUse = AdapterUse.MANY) -> AdapterStep:
        """Reads the slots on the host: not for captured steps."""
        return self._step(slots)

    def _step(self, slots: Tensor) -> _TorchStep:
        groups: dict[int, list[int]] = {}
        for token, slot in enumerate(slots.tolist()):
            if slot != NO_ADAPTER:
                groups.setdefault(slot, []).append(token)
        num_tokens, device = slots.shape[0], slots.device
        return _TorchStep(
            self._stack,
            self._kernels,
            slots,
            self._step,
            [
                _Group(
                    slot,
                    self._stack.table[slot].tolist(),
                    None
                    if len(tokens) == num_tokens
                    else torch.tensor(tokens, dtype=torch.int64, device=device),
                )
                for slot, tokens in sorted(groups.items())
            ],
        )


@dataclass(frozen=True, slots=True)
class _Group:
    """The tokens of one adapter."""

    slot: int
    table: list[list[int]]
    tokens: Tensor | None
    """None: all of the step's."""


@dataclass(frozen=True, slots=True)
class _TorchStep:
    stack: AdapterStack
    kernels: Kernels
    slots: Tensor
    step: Callable[[Tensor], AdapterStep]
    groups: list[_Group]

    def of(self, tokens: Tensor) -> AdapterStep:
        return self.step(self.slots[tokens])

    def project(self, index: int, linear: Linear, x: Tensor) -> Tensor:
        y = linear(x)
        with _one_thread():
            for group in self.groups:
                if group.table[index][1]:
                    self._add(y, group, index, x)
        return y

    def _add(self, y: Tensor, group: _Group, index: int, x: Tensor) -> None:
        projection = self.stack.projections[index]
        offset, rank = group.table[index]
        out_features = sum(projection.out_features)
        a = self.stack.a[index][group.slot]
        b = self.stack.b[group.slot, offset : offset + out_features * rank].view(-1, rank)
        chosen = x if group.tokens is None else x[group.tokens]
        added = torch.cat(
            [
                (chosen @ rows_of_a[:rank].T).to(b.dtype) @ rows_of_b.T
                for rows_of_a, rows_of_b in zip(a, rows_of_parts(b, projection), strict=True)
            ],
            dim=1,
        )
        if group.tokens is None:
            y += added
        else:
            y.index_add_(0, group.tokens, added.to(y.dtype))

    def project_gated(self, index: int, linear: Linear, x: Tensor, is_silu: bool) -> Tensor:
        gate_up = self.project(index, linear, x)
        return self.kernels.silu_mul(gate_up) if is_silu else self.kernels.gelu_tanh_mul(gate_up)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small products with many threads wait, at the end of each, for all of them; on a machine that
    others use too that took 130 ms a step where one thread took 8."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tiles_at_most(num_tokens: int, num_slots: int, tile_size: int) -> int:
    """Tiles that any split of the tokens over the slots and none can take."""
    return math.ceil(num_tokens / tile_size) + min(num_tokens, num_slots + 1)

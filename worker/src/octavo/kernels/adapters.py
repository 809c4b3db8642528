"""LoRA's part of the contract between models and the device, and its plain torch twin.

Knows where the matrices of an adapter lie and how they are applied to a step's tokens; knows
nothing of files, names or requests. An adapter adds ``scaling * B (A x)`` to a product ``W x``
(Hu et al., arXiv:2106.09685); the scaling is folded into B when an adapter is read. Base weights
are never changed, so tokens of many adapters and of none share one step.

Memory: a *slot* holds one adapter. Products that share their input are merged as the model
merges them, and one entry of ``table`` says where a slot keeps its part of a merged product::

    offset ──► A: [parts, rank, in_features]   B: [sum(out_features), rank]

The rank is the adapter's own, so a small adapter takes, moves and reads no more than it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels.fixed_rows import FixedRowsLinear
from octavo.kernels.interface import Kernels, Linear
from octavo.kernels.reference import DenseLinear

RANK_MULTIPLE = 16
"""Ranks are padded with zeros to this: the least a tensor core multiplies by."""
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
class AdapterStack:
    """The adapters on a device.

    ``storage: [num_slots, slot_size]``, the model's dtype (float32 on the CPU);
    ``table: [num_slots, num_projections, 2], int64``: offset in the slot and rank; a rank of 0
    says that the adapter leaves this product alone.
    """

    projections: tuple[Projection, ...]
    max_rank: int
    """That an adapter may have; a slot holds its padding."""
    storage: Tensor
    table: Tensor

    @classmethod
    def allocate(
        cls,
        projections: Sequence[Projection],
        num_slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> AdapterStack:
        """Room for ``num_slots`` adapters of up to ``max_rank``; none is there yet."""
        size = slot_size(projections, padded_rank(max_rank))
        # Left uninitialised: on the CPU pages are then mapped when first written.
        storage = torch.empty(num_slots, size, dtype=dtype, device=device)
        table = torch.zeros(num_slots, len(projections), 2, dtype=torch.int64, device=device)
        return cls(tuple(projections), max_rank, storage, table)

    @property
    def num_slots(self) -> int:
        return self.storage.shape[0]

    @property
    def size_bytes(self) -> int:
        return self.storage.numel() * self.storage.element_size()


def slot_size(projections: Sequence[Projection], rank: int) -> int:
    """Elements of an adapter that changes everything at this padded rank."""
    return sum(projection.num_elements(rank) for projection in projections)


def matrices_in(
    slot: Tensor, offset: int, rank: int, projection: Projection
) -> tuple[Tensor, Tensor]:
    """``A: [parts, rank, in_features]`` and ``B: [sum(out_features), rank]``, views of a slot."""
    num_parts, in_features = len(projection.names), projection.in_features
    middle = offset + num_parts * rank * in_features
    end = offset + projection.num_elements(rank)
    return (
        slot[offset:middle].view(num_parts, rank, in_features),
        slot[middle:end].view(-1, rank),
    )


def rows_of_parts(b: Tensor, projection: Projection) -> tuple[Tensor, ...]:
    """The rows of B by part."""
    return torch.split(b, list(projection.out_features))


class AdapterStep(Protocol):
    """The adapters of one step's tokens; handed down through the model."""

    def project(self, index: int, linear: Linear, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``linear(x)``, and what each token's adapter adds to it; None: it is added already.

        ``index`` counts the model's projections. ``x: [T, in_features]`` →
        ``[T, out_features]``.
        """

    def project_gated(self, index: int, linear: Linear, x: Tensor, is_silu: bool) -> Tensor:
        """The same for a merged gate and up, and the gate's activation: ``[T, size]``.

        SiLU, or else GELU in its tanh form.
        """

    def of(self, tokens: Tensor) -> AdapterStep:
        """The same for some of the tokens: ``[N], int64``."""


class Adapters(Protocol):
    """One implementation of the above, over one stack."""

    def step(self, slots: Tensor, is_decode: bool = False) -> AdapterStep:
        """``slots: [T], int32``: of each token; :data:`NO_ADAPTER` for those without.

        ``is_decode``: each token is a sequence's only new one.
        """


class TorchAdapters:
    """:class:`Adapters` in plain torch: the truth that others are compared with.

    On the CPU it is also what serves: the few tokens of an adapter, times matrices that fit the
    processor's cache.
    """

    def __init__(self, stack: AdapterStack, kernels: Kernels) -> None:
        self._stack = stack
        self._kernels = kernels

    def step(self, slots: Tensor, is_decode: bool = False) -> AdapterStep:
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
                    self._stack.storage[slot],
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

    slot: Tensor
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

    def project(self, index: int, linear: Linear, x: Tensor) -> tuple[Tensor, Tensor | None]:
        y = linear(x)
        with _one_thread():
            for group in self.groups:
                if group.table[index][1]:
                    self._add(y, group, index, x)
        return y, None

    def _add(self, y: Tensor, group: _Group, index: int, x: Tensor) -> None:
        projection = self.stack.projections[index]
        offset, rank = group.table[index]
        a, b = matrices_in(group.slot, offset, rank, projection)
        chosen = x if group.tokens is None else x[group.tokens]
        shrunk = self._product(chosen, a.flatten(0, 1)).to(b.dtype)
        added = torch.cat(
            [
                self._product(shrunk[:, part * rank : (part + 1) * rank], rows)
                for part, rows in enumerate(rows_of_parts(b, projection))
            ],
            dim=1,
        )
        if group.tokens is None:
            y += added
        else:
            y.index_add_(0, group.tokens, added.to(y.dtype))

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self.kernels.is_batch_invariant:
            return x @ weight.T
        return FixedRowsLinear(DenseLinear(weight, None))(x)

    def project_gated(self, index: int, linear: Linear, x: Tensor, is_silu: bool) -> Tensor:
        gate_up, _ = self.project(index, linear, x)
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

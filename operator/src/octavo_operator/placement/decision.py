"""Over how many GPUs a model is split, and whether that is sure to work, likely, or impossible.

A number that the user gives is checked and kept; `Auto` is the fewest GPUs that hold the model.
What is *refused* cannot work, whatever the estimate of a step's workspace is worth: heads that do
not divide, or weights and cache that exceed the memory. What only does not fit by that estimate is
left to the user who asked for it by number, and never chosen by `Auto`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Final

from octavo_operator.placement.footprint import (
    BLOCK_TOKENS,
    UNCOUNTED_BYTES,
    Footprint,
    Split,
    footprint,
    split_problem,
)
from octavo_operator.placement.gpu_kind import GpuKind
from octavo_operator.placement.model_shape import ModelShape
from octavo_operator.resources.accelerator import DEFAULT_RESOURCE
from octavo_operator.resources.inference_service import InferenceService

MOST_NODES: Final = 16
"""Nodes of one replica that `Auto` may choose where it does not know how many there are."""

_GIB: Final = 1 << 30


class Standing(Enum):
    """What is known of a placement."""

    FITS = "True"
    UNPROVED = "Unknown"
    REFUSED = "False"


@dataclass(frozen=True, slots=True)
class Decision:
    """split: None while none is chosen, or when none can be. reason: a stable word.

    product: GPUs that pods must be kept to, beyond what the spec says; None for no such limit.
    """

    standing: Standing
    reason: str
    message: str
    split: Split | None = None
    product: str | None = None


def decide(
    service: InferenceService,
    shape: ModelShape | None,
    kinds: Sequence[GpuKind],
    absence: str = "",
) -> Decision:
    """The placement of `service`, given the GPUs that its pods could get (empty: not known).

    shape: None while the model's is not known; `absence` then says why, if more is known than
    that it is being looked at.
    """
    parallelism, tensor = service.parallelism, service.parallelism.tensor
    if service.accelerator.is_cpu:
        return Decision(Standing.FITS, "NotNeeded", "the worker runs on the CPU", Split())
    if tensor is None:
        return _choose(service, shape, kinds, absence)
    split = Split(tensor, parallelism.pipeline, parallelism.nodes)
    if shape is None:
        return Decision(*_uninspected(absence), split)
    return _check(service, shape, kinds, split)


def _uninspected(absence: str) -> tuple[Standing, str, str]:
    if absence:
        return Standing.UNPROVED, "InspectionFailed", absence
    return (
        Standing.UNPROVED,
        "Inspecting",
        "the model's size is being looked at, so whether it fits is not known yet",
    )


def _check(
    service: InferenceService, shape: ModelShape, kinds: Sequence[GpuKind], split: Split
) -> Decision:
    problem = split_problem(shape, split)
    if problem is not None:
        return Decision(
            Standing.REFUSED,
            "NotDivisible",
            f"{service.model.uri} cannot be split as spec.parallelism says: {problem}; "
            f"{_possible_splits(shape)}",
        )
    need = footprint(shape, service.engine, split)
    utilization = service.engine.gpu_memory_utilization
    if not kinds:
        return Decision(Standing.UNPROVED, "GPUMemoryUnknown", _unknown_memory(need), split)
    most = max(kind.per_node or split.gpus_per_node for kind in kinds)
    if split.gpus_per_node > most:
        return Decision(
            Standing.UNPROVED,
            "NodesTooSmall",
            f"a pod asks for {split.gpus_per_node} GPUs, and no node that is there has more than "
            f"{most}: lower parallelism.tensor, or spread a replica with parallelism.nodes",
            split,
        )
    fitting = [kind for kind in kinds if need.total_bytes <= _share(kind.usable_bytes, utilization)]
    if len(fitting) == len(kinds):
        kind = min(fitting, key=lambda kind: kind.memory_bytes)
        return Decision(
            Standing.FITS, "Fits", _holds(service, shape, split, kind, utilization), split
        )
    largest = max(kinds, key=lambda kind: kind.memory_bytes)
    if fitting:
        names = ", ".join(kind.name for kind in fitting)
        return Decision(
            Standing.UNPROVED,
            "FitsSomeNodes",
            f"{_sum(need)}; that fits {names}, not every GPU that the pods may get: name one in "
            f"accelerator.product",
            split,
        )
    message = (
        f"{service.model.uri} does not fit {_gpus(split, largest)}: {_sum(need)}, and "
        f"{_share_text(largest, utilization)}; {_remedy(service, shape, split, kinds)}"
    )
    if _least(service, need) > _share(largest.memory_bytes, utilization):
        return Decision(Standing.REFUSED, "DoesNotFit", message)
    return Decision(
        Standing.UNPROVED, "MayNotFit", message.replace("does not", "may not", 1), split
    )


def _choose(
    service: InferenceService, shape: ModelShape | None, kinds: Sequence[GpuKind], absence: str
) -> Decision:
    """Single nodes before several, then few GPUs before many, then small GPUs before large."""
    if shape is None:
        standing, reason, message = _uninspected(absence)
        return Decision(standing, reason, f"spec.parallelism.tensor is Auto: {message}")
    if not kinds:
        need = footprint(shape, service.engine, Split(1, service.parallelism.pipeline))
        return Decision(
            Standing.REFUSED,
            "GPUMemoryUnknown",
            f"spec.parallelism.tensor is Auto: {_unknown_memory(need)}, or give tensor as a number",
        )
    utilization = service.engine.gpu_memory_utilization
    found = [
        (split.nodes, split.num_gpus, kind.memory_bytes, kind.name, split, kind)
        for kind in kinds
        for split in _splits(service, shape, kind)
        if footprint(shape, service.engine, split).total_bytes
        <= _share(kind.usable_bytes, utilization)
    ]
    if not found:
        return _nothing_fits(service, shape, kinds)
    *_, split, kind = min(found, key=lambda item: item[:4])
    is_limit = kind.product is not None and service.accelerator.product is None
    is_labelled = service.accelerator.resource == DEFAULT_RESOURCE
    return Decision(
        Standing.FITS,
        "Fits",
        _holds(service, shape, split, kind, utilization),
        split,
        kind.product if is_limit and is_labelled else None,
    )


def _splits(service: InferenceService, shape: ModelShape, kind: GpuKind) -> Iterator[Split]:
    """Every split that the model allows on nodes of `kind`; over several, a stage a node."""
    stages = service.parallelism.pipeline
    for tensor in range(1, kind.most_per_node // stages + 1):
        split = Split(tensor, stages)
        if split_problem(shape, split) is None:
            yield split
    if stages > 1:
        return
    for nodes in range(2, (kind.num_nodes or MOST_NODES) + 1):
        for tensor in range(1, kind.most_per_node + 1):
            split = Split(tensor, nodes, nodes)
            if split_problem(shape, split) is None:
                yield split


def _nothing_fits(
    service: InferenceService, shape: ModelShape, kinds: Sequence[GpuKind]
) -> Decision:
    utilization = service.engine.gpu_memory_utilization
    attempts = [(split, kind) for kind in kinds for split in _splits(service, shape, kind)]
    if not attempts:
        most = max(kind.most_per_node for kind in kinds)
        return Decision(
            Standing.REFUSED,
            "NotDivisible",
            f"{service.model.uri} cannot be split over the at most {most} GPUs of a node; "
            f"{_possible_splits(shape)}",
        )

    def lack(attempt: tuple[Split, GpuKind]) -> int:
        split, kind = attempt
        need = footprint(shape, service.engine, split)
        return need.total_bytes - _share(kind.usable_bytes, utilization)

    split, kind = min(attempts, key=lack)
    need = footprint(shape, service.engine, split)
    return Decision(
        Standing.REFUSED,
        "DoesNotFit",
        f"{service.model.uri} does not fit even {_gpus(split, kind)}: {_sum(need)}, and "
        f"{_share_text(kind, utilization)}; {_remedy(service, shape, split, kinds)}",
    )


def _least(service: InferenceService, need: Footprint) -> int:
    """The worker cuts a length that was not asked for down to what fits."""
    if service.engine.max_model_len is not None:
        return need.least_bytes
    return need.least_bytes - need.kv_bytes


def _share(memory_bytes: int, utilization: Decimal) -> int:
    return int(memory_bytes * utilization)


def _gpus(split: Split, kind: GpuKind) -> str:
    name = kind.name if kind.product or split.num_gpus == 1 else f"{kind.name}s"
    count = f"{split.num_gpus} × {name}"
    if split.pipeline == 1:
        return count
    stages = f"tensor {split.tensor} × pipeline {split.pipeline}"
    return f"{count} ({stages}{f' on {split.nodes} nodes' if split.nodes > 1 else ''})"


def _sum(need: Footprint) -> str:
    """What one GPU would hold, as an addition."""
    parts = [f"{_gib(need.weights_bytes)} of weights"]
    if need.adapters_bytes:
        parts.append(f"{_gib(need.adapters_bytes)} for adapters")
    parts.append(f"{_gib(need.kv_bytes)} of KV cache for {need.length} tokens")
    parts.append(f"about {_gib(need.workspace_bytes + UNCOUNTED_BYTES)} to work in")
    return f"each GPU holds {' + '.join(parts)} = {_gib(need.total_bytes)} GiB"


def _share_text(kind: GpuKind, utilization: Decimal) -> str:
    usable = _share(kind.usable_bytes, utilization)
    return f"may use {utilization} of {_gib(kind.usable_bytes)} = {_gib(usable)} GiB"


def _holds(
    service: InferenceService,
    shape: ModelShape,
    split: Split,
    kind: GpuKind,
    utilization: Decimal,
) -> str:
    need = footprint(shape, service.engine, split)
    room = _share(kind.usable_bytes, utilization) - need.fixed_bytes
    count = room // need.kv_bytes
    return (
        f"{_gpus(split, kind)}: {_sum(need)}, and {_share_text(kind, utilization)}; {count} "
        f"{'request' if count == 1 else 'requests'} of {need.length} tokens at a time"
    )


def _remedy(
    service: InferenceService, shape: ModelShape, split: Split, kinds: Sequence[GpuKind]
) -> str:
    """What would make it fit, nearest first."""
    remedies = []
    utilization = service.engine.gpu_memory_utilization
    largest = max(kinds, key=lambda kind: kind.memory_bytes)
    need = footprint(shape, service.engine, split)
    room = _share(largest.usable_bytes, utilization) - need.fixed_bytes
    length = room * need.length // need.kv_bytes // BLOCK_TOKENS * BLOCK_TOKENS
    if length >= BLOCK_TOKENS:
        remedies.append(f"lower engine.maxModelLen to {length}")
    if service.engine.quantization is None:
        remedies.append("set engine.quantization: fp8")
    remedies.append("name a larger accelerator.product")
    if service.parallelism.tensor is not None:
        remedies.append("raise parallelism.tensor")
    else:
        remedies.append("add GPUs")
    return f"{', '.join(remedies[:-1])} or {remedies[-1]}"


def _unknown_memory(need: Footprint) -> str:
    return (
        f"{_sum(need)}, and how much its GPUs have is not known, since no node tells: name "
        f"accelerator.product or accelerator.memory"
    )


def _possible_splits(shape: ModelShape) -> str:
    possible = [
        str(tensor) for tensor in range(1, 65) if split_problem(shape, Split(tensor)) is None
    ]
    return f"parallelism.tensor may be {', '.join(possible)}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f}"

"""Over how many GPUs a model is split, and whether that is sure to work, likely, or impossible.

A number that the user gives is checked and kept; `Auto` is the fewest GPUs that hold the model.
What is *refused* cannot work, whatever the estimate of a step's workspace is worth: heads that do
not divide, or weights and cache that exceed the memory. What only does not fit by that estimate is
left to the user who asked for it by number, and never chosen by `Auto`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from octavo_operator.placement.footprint import Footprint, Split, footprint, split_problem
from octavo_operator.placement.gpu_kind import GpuKind, share_bytes
from octavo_operator.placement.model_shape import ModelShape
from octavo_operator.placement.sentences import (
    holds_in_words,
    lack_in_words,
    parts_in_words,
    splits_in_words,
    sum_in_words,
    unknown_in_words,
)
from octavo_operator.resources.accelerator import DEFAULT_RESOURCE, MAX_NODES, MAX_TENSOR
from octavo_operator.resources.inference_service import InferenceService

MOST_NODES: Final = 16
"""Nodes of one replica that `Auto` may choose where it does not know how many there are."""


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
            f"{splits_in_words(shape)}",
        )
    need = footprint(shape, service.engine, split)
    utilization = service.engine.gpu_memory_utilization
    if not kinds:
        return Decision(Standing.UNPROVED, "GPUMemoryUnknown", unknown_in_words(need), split)
    if split.num_gpus > 1 and not any(kind.is_whole for kind in kinds):
        return Decision(Standing.UNPROVED, "GPUsNotWhole", parts_in_words(kinds[0]), split)
    most = max(kind.per_node or split.gpus_per_node for kind in kinds)
    if split.gpus_per_node > most:
        return Decision(
            Standing.UNPROVED,
            "NodesTooSmall",
            f"a pod asks for {split.gpus_per_node} GPUs, and no node that is there has more than "
            f"{most}: lower parallelism.tensor, or spread a replica with parallelism.nodes",
            split,
        )
    fitting = [
        kind for kind in kinds if need.total_bytes <= share_bytes(kind.usable_bytes, utilization)
    ]
    if len(fitting) == len(kinds):
        kind = min(fitting, key=lambda kind: (not kind.is_shared, kind.memory_bytes))
        return Decision(
            Standing.FITS, "Fits", holds_in_words(service, shape, split, kind, utilization), split
        )
    largest = max(kinds, key=lambda kind: kind.memory_bytes)
    if fitting:
        names = ", ".join(kind.name for kind in fitting)
        return Decision(
            Standing.UNPROVED,
            "FitsSomeNodes",
            f"{sum_in_words(need)}; that fits {names}, not every GPU that the pods may get: name "
            f"one in accelerator.product",
            split,
        )
    is_certain = _least(service, need) > share_bytes(largest.memory_bytes, utilization)
    claim = "does not fit" if is_certain else "may not fit"
    message = lack_in_words(service, shape, split, largest, kinds, claim)
    if is_certain:
        return Decision(Standing.REFUSED, "DoesNotFit", message)
    return Decision(Standing.UNPROVED, "MayNotFit", message, split)


def _choose(
    service: InferenceService, shape: ModelShape | None, kinds: Sequence[GpuKind], absence: str
) -> Decision:
    """GPUs of nodes that take pods now before others; then single nodes before several, then few
    GPUs before many, then GPUs of its own before shared ones, then small GPUs before large."""
    if shape is None:
        standing, reason, message = _uninspected(absence)
        return Decision(standing, reason, f"spec.parallelism.tensor is Auto: {message}")
    if not kinds:
        need = footprint(shape, service.engine, Split(1, service.parallelism.pipeline))
        return Decision(
            Standing.REFUSED,
            "GPUMemoryUnknown",
            f"spec.parallelism.tensor is Auto: {unknown_in_words(need)}, or give tensor as a "
            f"number",
        )
    utilization = service.engine.gpu_memory_utilization
    found = [
        (
            (kind.is_closed, split.nodes, split.num_gpus, kind.is_shared),
            (kind.memory_bytes, kind.name),
            split,
            kind,
        )
        for kind in kinds
        for split in _splits(service, shape, kind)
        if footprint(shape, service.engine, split).total_bytes
        <= share_bytes(kind.usable_bytes, utilization)
    ]
    if not found:
        return _nothing_fits(service, shape, kinds)
    *_, split, kind = min(found, key=lambda item: item[:2])
    is_limit = kind.product is not None and service.accelerator.product is None
    is_labelled = service.accelerator.resource == DEFAULT_RESOURCE
    return Decision(
        Standing.FITS,
        "Fits",
        holds_in_words(service, shape, split, kind, utilization),
        split,
        kind.product if is_limit and is_labelled else None,
    )


def _splits(service: InferenceService, shape: ModelShape, kind: GpuKind) -> Iterator[Split]:
    """Every split that the model allows on nodes of `kind`; over several, a stage a node.

    None is larger than what a user may ask for, whatever nodes say that they have.
    """
    stages = service.parallelism.pipeline
    if not kind.is_whole:
        if stages == 1:
            yield Split()
        return
    for tensor in range(1, min(kind.most_per_node // stages, MAX_TENSOR) + 1):
        split = Split(tensor, stages)
        if split_problem(shape, split) is None:
            yield split
    if stages > 1:
        return
    for nodes in range(2, min(kind.num_nodes or MOST_NODES, MAX_NODES) + 1):
        for tensor in range(1, min(kind.most_per_node, MAX_TENSOR) + 1):
            split = Split(tensor, nodes, nodes)
            if split_problem(shape, split) is None:
                yield split


def _nothing_fits(
    service: InferenceService, shape: ModelShape, kinds: Sequence[GpuKind]
) -> Decision:
    utilization = service.engine.gpu_memory_utilization
    attempts = [(split, kind) for kind in kinds for split in _splits(service, shape, kind)]
    if not attempts and not any(kind.is_whole for kind in kinds):
        return Decision(Standing.REFUSED, "GPUsNotWhole", parts_in_words(kinds[0]))
    if not attempts:
        most = max(kind.most_per_node for kind in kinds)
        return Decision(
            Standing.REFUSED,
            "NotDivisible",
            f"{service.model.uri} cannot be split over the at most {most} GPUs of a node; "
            f"{splits_in_words(shape)}",
        )

    def lack(attempt: tuple[Split, GpuKind]) -> int:
        split, kind = attempt
        need = footprint(shape, service.engine, split)
        return need.total_bytes - share_bytes(kind.usable_bytes, utilization)

    split, kind = min(attempts, key=lack)
    message = lack_in_words(service, shape, split, kind, kinds, "does not fit even")
    return Decision(Standing.REFUSED, "DoesNotFit", message)


def _least(service: InferenceService, need: Footprint) -> int:
    """The worker cuts a length that was not asked for down to what fits."""
    if service.engine.max_model_len is not None:
        return need.least_bytes
    return need.least_bytes - need.kv_bytes

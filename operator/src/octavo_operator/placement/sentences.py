"""What a placement is judged by, in words: what a GPU holds and may use, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from octavo_operator.placement.footprint import (
    BLOCK_TOKENS,
    UNCOUNTED_BYTES,
    Footprint,
    Split,
    footprint,
    split_problem,
)
from octavo_operator.placement.gpu_kind import GpuKind, share_bytes
from octavo_operator.placement.model_shape import ModelShape
from octavo_operator.resources.accelerator import MAX_TENSOR
from octavo_operator.resources.inference_service import InferenceService

_GIB: Final = 1 << 30


def gpus_in_words(split: Split, kind: GpuKind) -> str:
    """How many of which, and how they are used."""
    name = kind.name if kind.product or split.num_gpus == 1 else f"{kind.name}s"
    count = f"{split.num_gpus} × {name}"
    if split.pipeline == 1:
        return count
    stages = f"tensor {split.tensor} × pipeline {split.pipeline}"
    return f"{count} ({stages}{f' on {split.nodes} nodes' if split.nodes > 1 else ''})"


def sum_in_words(need: Footprint) -> str:
    """What one GPU would hold, as an addition."""
    parts = [f"{_gib(need.weights_bytes)} of weights"]
    if need.adapters_bytes:
        parts.append(f"{_gib(need.adapters_bytes)} for adapters")
    parts.append(f"{_gib(need.kv_bytes)} of KV cache for {need.length} tokens")
    parts.append(f"about {_gib(need.workspace_bytes + UNCOUNTED_BYTES)} to work in")
    return f"each GPU holds {' + '.join(parts)} = {_gib(need.total_bytes)} GiB"


def share_in_words(kind: GpuKind, utilization: Decimal) -> str:
    """What one GPU may use."""
    usable = share_bytes(kind.usable_bytes, utilization)
    return f"may use {utilization} of {_gib(kind.usable_bytes)} = {_gib(usable)} GiB"


def holds_in_words(
    service: InferenceService,
    shape: ModelShape,
    split: Split,
    kind: GpuKind,
    utilization: Decimal,
) -> str:
    """A placement that fits, and how many of the longest requests it takes at a time."""
    need = footprint(shape, service.engine, split)
    room = share_bytes(kind.usable_bytes, utilization) - need.fixed_bytes
    count = room // need.kv_bytes
    requests = f"{count} {'request' if count == 1 else 'requests'} of {need.length} tokens"
    what = f"{sum_in_words(need)}, and {share_in_words(kind, utilization)}"
    return f"{gpus_in_words(split, kind)}: {what}; {requests} at a time{_sharing_in_words(kind)}"


def parts_in_words(kind: GpuKind) -> str:
    """Why a pod must not get several."""
    what = "slices of GPUs (MIG)" if kind.is_slice else "GPUs that pods share (time-slicing)"
    return (
        f"{kind.name} names {what}: a pod may get the same card twice, over which no model can be "
        f"split; set parallelism.tensor and pipeline to 1, or name a resource for whole GPUs"
    )


def lack_in_words(
    service: InferenceService,
    shape: ModelShape,
    split: Split,
    kind: GpuKind,
    kinds: Sequence[GpuKind],
    claim: str,
) -> str:
    """A placement that does not fit, and what would help; `claim` says how sure that is."""
    need = footprint(shape, service.engine, split)
    share = share_in_words(kind, service.engine.gpu_memory_utilization)
    return (
        f"{service.model.uri} {claim} {gpus_in_words(split, kind)}: {sum_in_words(need)}, and "
        f"{share}; {_remedy(service, shape, split, kinds)}"
    )


def unknown_in_words(need: Footprint) -> str:
    """Where no node and no table tells of the GPUs."""
    return (
        f"{sum_in_words(need)}, and how much its GPUs have is not known, since no node tells: name "
        f"accelerator.product or accelerator.memory"
    )


def splits_in_words(shape: ModelShape) -> str:
    """The numbers of GPUs that the model's heads allow."""
    possible = [
        str(tensor)
        for tensor in range(1, MAX_TENSOR + 1)
        if split_problem(shape, Split(tensor)) is None
    ]
    return f"parallelism.tensor may be {', '.join(possible)}"


def _remedy(
    service: InferenceService, shape: ModelShape, split: Split, kinds: Sequence[GpuKind]
) -> str:
    """What would make it fit, nearest first."""
    remedies = []
    utilization = service.engine.gpu_memory_utilization
    largest = max(kinds, key=lambda kind: kind.memory_bytes)
    need = footprint(shape, service.engine, split)
    room = share_bytes(largest.usable_bytes, utilization) - need.fixed_bytes
    length = room * need.length // need.kv_bytes // BLOCK_TOKENS * BLOCK_TOKENS
    if length >= BLOCK_TOKENS:
        remedies.append(f"lower engine.maxModelLen to {length}")
    if service.engine.quantization is None:
        remedies.append("set engine.quantization: fp8")
    remedies.append("name a larger accelerator.product")
    if any(kind.is_whole for kind in kinds):
        is_number = service.parallelism.tensor is not None
        remedies.append("raise parallelism.tensor" if is_number else "add GPUs")
    return " or ".join(filter(None, (", ".join(remedies[:-1]), remedies[-1])))


def _sharing_in_words(kind: GpuKind) -> str:
    if not kind.is_shared:
        return ""
    return "; the GPU is shared, and what other pods take of its memory is not counted"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f}"

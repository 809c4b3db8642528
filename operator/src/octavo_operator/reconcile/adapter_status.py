"""The status of a LoRAAdapter: what its conditions say of where it stands in the pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from octavo_operator.reconcile.adapter_facts import Failure, gravest
from octavo_operator.reconcile.adapter_placement import Placed
from octavo_operator.reconcile.adapter_resolution import Resolution, remembered_target
from octavo_operator.reconcile.adapter_standing import PodState, Standing
from octavo_operator.reconcile.conditions import (
    LOADED,
    READY,
    SOURCE_RESOLVED,
    Condition,
    merge_conditions,
)
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.resources.lora_adapter import LoRAAdapter

_MESSAGE_LIMIT: Final = 300
"""Of one pod's message; there may be many pods."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why an adapter is in no pod: a stable reason and a sentence."""

    reason: str
    message: str


def loaded_status(placed: Placed, now: datetime) -> dict[str, Any]:
    """Of an adapter that belongs in pods. Of the others, which load it when a request comes,
    failures are told; and until they know its name it is not ready."""
    resolved = _source_resolved(placed.adapter, placed.resolution)
    loaded = _loaded(placed.adapter, placed.standings, placed.others)
    is_ready = resolved.status == loaded.status == "True"
    # What has become of the source says more than that pods lack it.
    cause = loaded if resolved.status == "True" else resolved
    ready = Condition(READY, "True" if is_ready else "False", cause.reason, cause.message)
    target = placed.resolution.target
    found = (
        {
            "resolvedDigest": target.digest,
            "resolvedRevision": target.revision or "",
            "resolvedFrom": dict(target.came_from),
        }
        if target is not None
        else {}
    )
    failed = (each for each in placed.others if each.state is PodState.FAILED)
    return {
        **found,
        **_counts(placed.standings, tuple(failed)),
        **_header(placed.resource, [resolved, loaded, ready], now),
    }


def unloaded_status(
    resource: LiveObject,
    verdict: Verdict,
    standings: tuple[Standing, ...],
    now: datetime,
) -> dict[str, Any]:
    """Of an adapter that belongs in no pod, with what is still left of it in some."""
    is_known = remembered_target(resource) is not None and verdict.reason != "InvalidSpec"
    conditions = [
        Condition(SOURCE_RESOLVED, "Unknown", verdict.reason, verdict.message)
        if not is_known
        else Condition(SOURCE_RESOLVED, "True", "Resolved", "the source has been found before"),
        Condition(LOADED, "False", verdict.reason, verdict.message),
        Condition(READY, "False", verdict.reason, verdict.message),
    ]
    counts = {**_counts(standings), "desired": 0, "loaded": 0}
    return {**counts, **_header(resource, conditions, now)}


def _header(resource: LiveObject, conditions: list[Condition], now: datetime) -> dict[str, Any]:
    return {
        "observedGeneration": resource["metadata"].get("generation", 0),
        "conditions": merge_conditions(resource, conditions, now),
    }


def _counts(standings: tuple[Standing, ...], others: tuple[Standing, ...] = ()) -> dict[str, Any]:
    told = (*standings, *others)
    return {
        "desired": len(standings),
        "loaded": sum(standing.is_loaded for standing in standings),
        "failed": sum(standing.state is PodState.FAILED for standing in told),
        "pods": [
            _pod_entry(standing)
            for standing in sorted(told, key=lambda standing: standing.pod.name)
        ],
    }


def _pod_entry(standing: Standing) -> Mapping[str, Any]:
    pod, failure = standing.pod, standing.failure
    entry = {
        "name": pod.name,
        "uid": pod.uid,
        "containerID": pod.container_id,
        "state": str(standing.state),
        "digest": standing.digest,
        "reason": failure.reason if failure is not None else None,
        "message": failure.message[:_MESSAGE_LIMIT] if failure is not None else None,
    }
    return {key: value for key, value in entry.items() if value is not None}


def _source_resolved(adapter: LoRAAdapter, resolution: Resolution) -> Condition:
    target, failure = resolution.target, resolution.failure
    if resolution.is_resolved:
        assert target is not None
        at = f" at {target.revision}" if target.revision else ""
        message = f"{adapter.uri}{at} is {target.digest}"
        return Condition(SOURCE_RESOLVED, "True", "Resolved", message)
    serving = f"; pods serve {target.digest} on" if target is not None else ""
    if failure is not None:
        # A worker's sentence ends with a full stop.
        message = failure.message.removesuffix(".") + serving if serving else failure.message
        return Condition(SOURCE_RESOLVED, "False", failure.reason, message)
    message = f"one pod is looking {adapter.uri} up, before the others load it{serving}"
    return Condition(SOURCE_RESOLVED, "False", "Resolving", message)


def _loaded(
    adapter: LoRAAdapter, standings: tuple[Standing, ...], others: tuple[Standing, ...]
) -> Condition:
    num_loaded, wanted = sum(each.is_loaded for each in standings), len(standings)
    counted = f"{num_loaded} of {wanted} pods serve {adapter.served_name}"
    if adapter.replicas is not None and adapter.replicas > wanted:
        counted += f" (placement.replicas is {adapter.replicas}, and there are no more pods)"
    num_unaware = sum(not each.is_loaded and each.failure is None for each in others)
    if num_loaded == wanted and num_unaware:
        others_do = "other pod does" if num_unaware == 1 else "other pods do"
        waiting = f"{num_unaware} {others_do} not know its name yet"
        return Condition(LOADED, "False", "Loading", f"{counted}; {waiting}")
    if num_loaded == wanted:
        return Condition(LOADED, "True", "Loaded", counted)
    worst = _worst(standings)
    if worst is not None:
        return Condition(LOADED, "False", worst.reason, f"{counted}; {worst.message}")
    return Condition(LOADED, "False", "Loading", counted)


def _worst(standings: tuple[Standing, ...]) -> Failure | None:
    """The gravest failure that keeps a pod from serving it, of the first pod by name."""
    failures = [
        standing.failure
        for standing in sorted(standings, key=lambda standing: standing.pod.name)
        if standing.failure is not None and not standing.is_loaded
    ]
    return gravest(failures)

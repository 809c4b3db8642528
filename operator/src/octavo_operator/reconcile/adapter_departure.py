"""A LoRAAdapter on its way out: held until no pod has it, though never for longer than a limit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from octavo_operator.labels import FINALIZER
from octavo_operator.reconcile.adapter_standing import PodState, Standing
from octavo_operator.reconcile.adapter_status import Verdict, unloaded_status
from octavo_operator.reconcile.adapter_world import AdapterWorld
from octavo_operator.reconcile.live_object import LiveObject, is_going
from octavo_operator.reconcile.worker_pod import WorkerPod
from octavo_operator.resources.lora_adapter import served_name_of

UNLOAD_LIMIT_S: Final = 60.0
"""How long a deleted LoRAAdapter is held while pods unload it."""


@dataclass(frozen=True, slots=True)
class Departure:
    """Of one resource that is being deleted.

    status: to be shown meanwhile, None when it may go now. late: pods that may still have it when
    it goes, by name. remaining_s: how long it may be held on.
    """

    resource: LiveObject
    status: dict[str, Any] | None
    late: tuple[str, ...] = ()
    remaining_s: float = 0.0


def departures(
    world: AdapterWorld, able: tuple[WorkerPod, ...], served_names: Iterable[str]
) -> tuple[Departure, ...]:
    """Those of `world` that are being deleted; `served_names` others go on serving."""
    kept = frozenset(served_names)
    return tuple(
        _depart(resource, world, able, kept)
        for resource in world.adapters
        if is_going(resource) and is_held(resource)
    )


def is_held(resource: LiveObject) -> bool:
    """Whether our finalizer is on it."""
    return FINALIZER in (resource["metadata"].get("finalizers") or ())


def _depart(
    resource: LiveObject,
    world: AdapterWorld,
    able: tuple[WorkerPod, ...],
    kept: frozenset[str],
) -> Departure:
    name = served_name_of(resource)
    remaining = [pod for pod in able if _may_have(resource, name, pod, world)]
    if name in kept or not remaining:
        return Departure(resource, None)
    since = world.going_since.get(str(resource["metadata"]["uid"]), world.now)
    left = since + timedelta(seconds=UNLOAD_LIMIT_S) - world.now
    if left <= timedelta():
        return Departure(resource, None, tuple(pod.name for pod in remaining))
    verdict = Verdict("Deleting", f"{len(remaining)} pods still have {name}")
    standings = tuple(_standing(pod, name, world) for pod in remaining)
    status = unloaded_status(resource, verdict, standings, world.now)
    return Departure(resource, status, remaining_s=left.total_seconds())


def _may_have(resource: LiveObject, name: str, pod: WorkerPod, world: AdapterWorld) -> bool:
    if world.has_answered(pod):
        return world.listed(pod, name) is not None or world.busy_with(pod, name) is not None
    placement = (resource.get("spec") or {}).get("placement") or {}
    if placement.get("replicas", "All") != "All":
        return True  # its status does not tell of pods that know the name only
    entries = (resource.get("status") or {}).get("pods") or ()
    return any(entry.get("uid") == pod.uid for entry in entries)


def _standing(pod: WorkerPod, name: str, world: AdapterWorld) -> Standing:
    listed = world.listed(pod, name)
    return Standing(pod, PodState.UNLOADING, listed.digest if listed is not None else None)

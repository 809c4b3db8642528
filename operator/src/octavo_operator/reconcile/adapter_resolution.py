"""Which files an adapter's source stands for: told by one pod first, then asked of all others.

The first pod loads whatever the source is now and answers with its digest, which goes into the
status; all others are told to load that digest and no other. So a source that moves while pods
come and go never mixes two versions, and a version that is refused reaches one pod only, which
goes on serving what it had. The source is looked up again when its text changes, or by annotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo_operator.errors import ResourceError
from octavo_operator.reconcile.adapter_facts import Failure, gravest
from octavo_operator.reconcile.adapter_source import obstacle_to
from octavo_operator.reconcile.adapter_world import AdapterWorld
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.reconcile.worker_pod import WorkerPod
from octavo_operator.resources.lora_adapter import LoRAAdapter
from octavo_operator.resources.model_uri import ModelSource, parse_model_uri


@dataclass(frozen=True, slots=True)
class Target:
    """Files known by their digest. came_from: the status field `resolvedFrom`."""

    source: ModelSource
    revision: str | None
    digest: str
    came_from: Mapping[str, str]

    @property
    def uri(self) -> str:
        return str(self.came_from.get("uri", ""))


@dataclass(frozen=True, slots=True)
class Resolution:
    """is_resolved: `target` is what the spec asks for; else it is what was served before, if any.

    canary: the pod that shall look up the source. failure: why that has not worked so far.
    """

    target: Target | None
    is_resolved: bool
    canary: WorkerPod | None = None
    failure: Failure | None = None


def wanted_source(adapter: LoRAAdapter) -> dict[str, str]:
    """The source as the status remembers it."""
    return {
        "uri": adapter.uri,
        "revision": adapter.revision or "",
        "digest": adapter.digest or "",
        "request": adapter.request,
    }


def lookup_key(adapter: LoRAAdapter) -> str:
    """Stands for the source, whatever its files are, in the key of an attempt."""
    return "?" + "\n".join(wanted_source(adapter).values())


def target_key(target: Target) -> str:
    """Stands for known files in the key of an attempt."""
    return f"={target.digest}"


def resolve(
    adapter: LoRAAdapter, resource: LiveObject, chosen: tuple[WorkerPod, ...], world: AdapterWorld
) -> Resolution:
    """What the pods shall load, given those that are chosen for it."""
    before, wanted = remembered_target(resource), wanted_source(adapter)
    if before is not None and before.came_from == wanted:
        return Resolution(before, is_resolved=True)
    for pod in chosen:
        attempt = world.attempt(pod, adapter.served_name, lookup_key(adapter))
        if attempt is not None and attempt.failure is None and attempt.digest is not None:
            revision = attempt.revision or adapter.revision
            found = Target(adapter.source, revision, attempt.digest, wanted)
            return Resolution(found, is_resolved=True)
    return Resolution(
        before,
        is_resolved=False,
        canary=_canary(adapter, chosen, world),
        failure=_failure(adapter, chosen, world),
    )


def remembered_target(resource: LiveObject) -> Target | None:
    """What the status says was resolved last."""
    status: Mapping[str, Any] = resource.get("status") or {}
    digest, came_from = status.get("resolvedDigest"), status.get("resolvedFrom") or {}
    try:
        source = parse_model_uri("status.resolvedFrom.uri", str(came_from.get("uri", "")))
    except ResourceError:
        return None
    if not digest:
        return None
    revision = status.get("resolvedRevision") or came_from.get("revision")
    return Target(source, revision or None, str(digest), came_from)


def _canary(
    adapter: LoRAAdapter, chosen: tuple[WorkerPod, ...], world: AdapterWorld
) -> WorkerPod | None:
    """Where it goes on already, or else the pod where it has failed least often.

    Pods of a template that it has failed with for good are left alone: they are all alike.
    """
    name, key = adapter.served_name, lookup_key(adapter)
    hopeless: set[str] = set()
    counts: dict[str, int] = {}
    for pod in chosen:
        attempt = world.attempt(pod, name, key)
        counts[pod.uid] = attempt.count if attempt is not None else 0
        if attempt is not None and attempt.failure is not None and attempt.failure.is_permanent:
            hopeless.add(pod.template)
    for pod in chosen:
        busy = world.busy_with(pod, name)
        if busy is not None and busy.source == key:
            return pod
    able = [
        pod
        for pod in chosen
        if world.has_answered(pod)
        and pod.template not in hopeless
        and obstacle_to(adapter, pod) is None
    ]
    return min(able, key=lambda pod: counts[pod.uid], default=None)


def _failure(
    adapter: LoRAAdapter, chosen: tuple[WorkerPod, ...], world: AdapterWorld
) -> Failure | None:
    """The gravest on any pod; else what the pods lack, if none of them could try."""
    attempts = [world.attempt(pod, adapter.served_name, lookup_key(adapter)) for pod in chosen]
    failures = [each.failure for each in attempts if each is not None and each.failure is not None]
    if failures:
        return gravest(failures)
    obstacles = [obstacle_to(adapter, pod) for pod in chosen]
    if obstacles and all(obstacles):
        return obstacles[0]
    if chosen and not any(world.has_answered(pod) for pod in chosen):
        return Failure("PodUnreachable", f"no pod of {adapter.service} answers the operator")
    return None

"""From one look at a service's adapters to the calls, writes and statuses that are due.

Level-based, as `plan` is: what a pod lists is compared with what it should. What no LoRAAdapter
asks for is unloaded, so that nothing is served that nobody can see; the adapters of a pod's own
command line are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.reconcile.adapter_claims import Claims, read_claims
from octavo_operator.reconcile.adapter_departure import Departure, departures, is_held
from octavo_operator.reconcile.adapter_facts import UNLOAD, Attempt, AttemptKey
from octavo_operator.reconcile.adapter_placement import Placed, place_adapter
from octavo_operator.reconcile.adapter_resolution import (
    lookup_key,
    remembered_target,
    target_key,
    wanted_source,
)
from octavo_operator.reconcile.adapter_standing import Load
from octavo_operator.reconcile.adapter_status import Verdict, loaded_status, unloaded_status
from octavo_operator.reconcile.adapter_summary import is_same_summary, summary_status
from octavo_operator.reconcile.adapter_wanted import due_list
from octavo_operator.reconcile.adapter_world import AdapterWorld
from octavo_operator.reconcile.conditions import READY
from octavo_operator.reconcile.live_object import LiveObject, conditions_of, is_going
from octavo_operator.reconcile.status import is_same_status
from octavo_operator.reconcile.worker_pod import WorkerPod
from octavo_operator.resources.lora_adapter import served_name_of

HELD_POD_S: Final = 5.0
"""When a pod that takes no traffic yet is asked again: it gives up waiting for an operator that
does not ask."""

SILENT_POD_S: Final = 10.0
"""When a pod that did not answer is asked again."""

ASK_AGAIN_S: Final = 60.0
"""When pods are asked again though nothing has happened: they do not say by themselves that an
adapter could not be read again, or that a request has loaded one."""

NO_POD_S: Final = 30.0
"""When to look whether a service without pods has been put to sleep; its status makes no event."""

_ASLEEP: Final = frozenset({"Sleeping", "ScaledToZero"})


@dataclass(frozen=True, slots=True)
class Unload:
    """One call: have `pod` forget the name of `key`."""

    key: AttemptKey
    pod: WorkerPod


@dataclass(frozen=True, slots=True)
class Report:
    """A status to write, and the resource as it was read."""

    resource: LiveObject
    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """What is due.

    loads: those that have failed least come first, of these names, which wait for no source.
    holds: resources to set the finalizer on. releases: those to take it off. admits: pods to be
    told that no adapter is missing. wanted: the list for pods to come, where it is to be written.
    look_again_s: when time alone may change what is due.
    """

    loads: tuple[Load, ...] = ()
    unloads: tuple[Unload, ...] = ()
    holds: tuple[LiveObject, ...] = ()
    releases: tuple[Departure, ...] = ()
    admits: tuple[WorkerPod, ...] = ()
    wanted: Mapping[str, Any] | None = None
    reports: tuple[Report, ...] = ()
    service_report: Report | None = None
    look_again_s: float | None = None

    @property
    def is_empty(self) -> bool:
        calls = (self.loads, self.unloads)
        writes = (self.holds, self.releases, self.admits, self.wanted, self.reports)
        return self.service_report is None and not any((*calls, *writes))


def plan_adapters(world: AdapterWorld) -> AdapterPlan:
    """What is due in `world`; nothing any more once it has been done."""
    claims = read_claims(world)
    # The pods of a service that is gone, or going, go with it.
    is_there = world.service is not None and not is_going(world.service)
    able = tuple(pod for pod in world.pods if pod.takes_adapters and pod.is_started and is_there)
    chosen_from = able if claims.obstacle is None else ()
    placed = [
        place_adapter(resource, adapter, chosen_from, world)
        for resource, adapter in claims.accepted
    ]
    leaving = departures(world, able, (one.adapter.served_name for one in placed))
    statuses = _statuses(claims, placed, world)
    has_pods = is_there and any(pod.takes_adapters for pod in world.pods)
    # Held while there are pods to unload it. A namespace that is deleted loses its pods first, and
    # then, in any order, its adapters and the rights of an operator that is confined to it.
    idle = [one for one, _ in statuses if is_held(one) and not has_pods]
    shown = [*statuses, *((one.resource, one.status) for one in leaving if one.status is not None)]
    loads = [each.load for one in placed for each in one.everywhere if each.load is not None]
    held = [pod for pod in able if pod.uid in world.held]
    admits = tuple(pod for pod in held if _may_serve(pod, placed))
    is_waiting = bool(placed) and not (able or claims.obstacle or _is_asleep(world))
    return AdapterPlan(
        loads=tuple(sorted(loads, key=lambda load: (load.num_failures, not load.is_lazy))),
        unloads=_unloads(world, able, claims, placed),
        holds=tuple(one for one, _ in statuses if has_pods and not is_held(one)),
        releases=(
            *(one for one in leaving if one.status is None),
            *(Departure(one, None) for one in idle),
        ),
        admits=admits,
        wanted=due_list(world, claims, placed) if is_there else None,
        reports=tuple(
            Report(resource, status)
            for resource, status in shown
            if not is_same_status(resource.get("status"), status)
        ),
        service_report=_service_report(world, statuses),
        look_again_s=_look_again_s(
            world,
            able,
            placed,
            leaving,
            is_waiting=is_waiting,
            is_holding=len(admits) < len(held),
        ),
    )


def attempts_in_use(world: AdapterWorld) -> frozenset[AttemptKey]:
    """Those of `world.attempts` that may still tell something: failures of what is still wanted,
    and digests that are not in a status yet."""
    containers = {(pod.uid, pod.container_id) for pod in world.pods}
    wanted: set[tuple[str, str]] = set()
    for resource, adapter in read_claims(world).accepted:
        before, name = remembered_target(resource), adapter.served_name
        if before is None or before.came_from != wanted_source(adapter):
            wanted.add((name, lookup_key(adapter)))
        if before is not None:
            wanted.add((name, target_key(before)))
    return frozenset(
        key
        for key, attempt in world.attempts.items()
        if (key.pod_uid, key.container_id) in containers
        and (
            (key.source == UNLOAD and _still_counts(attempt, world))
            or (key.name, key.source) in wanted
        )
    )


def _still_counts(unload: Attempt, world: AdapterWorld) -> bool:
    """Of an unload that has worked nothing is kept, but that it is not to be repeated at once."""
    return unload.failure is not None or unload.retry_at_s > world.now_s


def _statuses(
    claims: Claims, placed: list[Placed], world: AdapterWorld
) -> list[tuple[LiveObject, dict[str, Any]]]:
    statuses = [
        (resource, unloaded_status(resource, verdict, (), world.now))
        for resource, verdict in claims.refused
    ]
    for one in placed:
        if one.standings:
            status = loaded_status(one, world.now)
        else:
            verdict = claims.obstacle or _no_pods(world)
            status = unloaded_status(one.resource, verdict, (), world.now)
        statuses.append((one.resource, status))
    return statuses


def _no_pods(world: AdapterWorld) -> Verdict:
    if _is_asleep(world):
        message = f"{world.name} has no pod; the next one loads it before it serves"
        return Verdict("ScaledToZero", message)
    return Verdict("WaitingForPods", f"no pod of {world.name} runs yet; those to come load it")


def _is_asleep(world: AdapterWorld) -> bool:
    return conditions_of(world.service).get(READY, {}).get("reason") in _ASLEEP


def _unloads(
    world: AdapterWorld, able: tuple[WorkerPod, ...], claims: Claims, placed: list[Placed]
) -> tuple[Unload, ...]:
    wanted = {(each.pod.uid, one.adapter.served_name) for one in placed for each in one.everywhere}
    going = {served_name_of(item) for item in world.adapters if is_going(item)}
    found = []
    for pod in able:
        for name, listed in sorted(world.listings.get(pod.uid, {}).items()):
            is_ours = name not in pod.own_adapters and name not in claims.kept_names
            if (pod.uid, name) in wanted or not is_ours or listed.state == "draining":
                continue
            # Pods that a service without adapters still has serve on as they are until they go.
            if claims.obstacle is not None and name not in going:
                continue
            key = AttemptKey(pod.uid, pod.container_id, name, UNLOAD)
            attempt = world.attempts.get(key)
            if world.busy_with(pod, name) is None and (
                attempt is None or attempt.is_due(world.now_s)
            ):
                found.append(Unload(key, pod))
    return tuple(found)


def _may_serve(pod: WorkerPod, placed: list[Placed]) -> bool:
    """Once its eager adapters are loaded, or cannot be, and it knows the names of the others; the
    pod itself knows when they have had their time."""
    return not any(
        one.keeps_out(each) for one in placed for each in one.everywhere if each.pod.uid == pod.uid
    )


def _service_report(
    world: AdapterWorld, statuses: list[tuple[LiveObject, dict[str, Any]]]
) -> Report | None:
    if world.service is None or is_going(world.service):
        return None
    summary = summary_status(statuses)
    if is_same_summary(world.service.get("status"), summary):
        return None
    return Report(world.service, summary)


def _look_again_s(
    world: AdapterWorld,
    able: tuple[WorkerPod, ...],
    placed: list[Placed],
    leaving: tuple[Departure, ...],
    *,
    is_waiting: bool,
    is_holding: bool,
) -> float | None:
    times = [one.remaining_s for one in leaving if one.status is not None]
    times += [
        each.retry_at_s - world.now_s
        for one in placed
        for each in one.everywhere
        if each.retry_at_s is not None
    ]
    for attempt_key, attempt in world.attempts.items():
        if attempt_key.source == UNLOAD and _still_counts(attempt, world):
            times.append(attempt.retry_at_s - world.now_s)
    if not all(world.has_answered(pod) for pod in able):
        times.append(SILENT_POD_S)
    if is_waiting:
        times.append(NO_POD_S)
    if placed and able:
        times.append(ASK_AGAIN_S)
    if is_holding:
        times.append(HELD_POD_S)
    return max(min(times), 0.1) if times else None

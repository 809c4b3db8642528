"""How long the latest pod took to come up, and with what: `status.startup`.

Times before the worker runs come from the pod's status, in whole seconds as the API has them; the
rest from what the worker tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from octavo_operator.labels import WORKER_CONTAINER
from octavo_operator.reconcile.live_object import LiveObject, conditions_of, is_ready_pod

WORKER_PHASES: Final[Mapping[str, tuple[str, ...]]] = {
    "download": ("files",),
    "load": ("import", "weights"),
    "warmup": ("kernels", "kv_cache", "graphs", "warmup"),
    "adapters": ("adapter_memory", "adapters"),
}
"""Our phases, each the sum of phases that the worker names."""


def latest_ready_pod(pods: Iterable[LiveObject]) -> LiveObject | None:
    """The youngest pod that takes requests; None when there is none."""
    return max(filter(is_ready_pod, pods), key=_age_key, default=None)


def startup_status(
    pods: Iterable[LiveObject],
    phases_s: Mapping[str, Mapping[str, float]],
    previous: Mapping[str, Any] | None,
) -> Mapping[str, Any] | None:
    """`status.startup`, or None when nothing is known yet.

    `phases_s` is by uid; `previous` stays while no younger pod has told of its start.
    """
    pod = latest_ready_pod(pods)
    if pod is None or str(pod["metadata"].get("uid")) not in phases_s:
        return previous
    told = phases_s[str(pod["metadata"]["uid"])]
    created = _parsed(pod["metadata"].get("creationTimestamp"))
    scheduled = _condition_time(pod, "PodScheduled")
    seconds = {
        "schedule": _between(created, scheduled),
        "pull": _between(scheduled, _first_start(pod)),
        **{name: _sum(told, parts) for name, parts in WORKER_PHASES.items()},
        "total": _between(created, _condition_time(pod, "Ready")),
    }
    init_s = _init_seconds(pod)
    if init_s is not None:
        seconds["download"] = init_s + (seconds["download"] or 0.0)
    known = {name: f"{value:.1f}s" for name, value in seconds.items() if value is not None}
    # A merge of statuses takes nothing away of itself: what the pod before told is named, as null.
    return {**dict.fromkeys(previous or ()), "pod": pod["metadata"]["name"], **known}


def _age_key(pod: LiveObject) -> tuple[str, str]:
    return str(pod["metadata"].get("creationTimestamp", "")), str(pod["metadata"]["name"])


def _condition_time(pod: LiveObject, kind: str) -> datetime | None:
    """When the condition became true; None when it is not."""
    condition = conditions_of(pod).get(kind, {})
    if condition.get("status") != "True":
        return None
    return _parsed(condition.get("lastTransitionTime"))


def _first_start(pod: LiveObject) -> datetime | None:
    """When the first container ran, so that all images before it were there."""
    status = pod.get("status") or {}
    found = []
    for container in (*_statuses(status, "init"), *_statuses(status, "worker")):
        state = container.get("state") or {}
        part = state.get("running") or state.get("terminated") or {}
        started = _parsed(part.get("startedAt"))
        if started is not None:
            found.append(started)
    return min(found, default=None)


def _init_seconds(pod: LiveObject) -> float | None:
    total = None
    for container in _statuses(pod.get("status") or {}, "init"):
        ended = (container.get("state") or {}).get("terminated") or {}
        took = _between(_parsed(ended.get("startedAt")), _parsed(ended.get("finishedAt")))
        if took is not None:
            total = (total or 0.0) + took
    return total


def _statuses(status: Mapping[str, Any], which: str) -> list[Mapping[str, Any]]:
    if which == "init":
        return list(status.get("initContainerStatuses") or ())
    found = status.get("containerStatuses") or ()
    return [item for item in found if item.get("name") == WORKER_CONTAINER]


def _sum(told: Mapping[str, float], parts: tuple[str, ...]) -> float | None:
    known = [told[part] for part in parts if part in told]
    return sum(known) if known else None


def _between(start: datetime | None, end: datetime | None) -> float | None:
    if start is None or end is None:
        return None
    return max((end - start).total_seconds(), 0.0)


def _parsed(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None

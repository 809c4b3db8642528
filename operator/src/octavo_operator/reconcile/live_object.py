"""An object as the API returned it, and what more than one place reads of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

LiveObject: TypeAlias = Mapping[str, Any]
"""With apiVersion and kind filled in. What is empty may be absent, or null."""


def labels_of(live: LiveObject) -> Mapping[str, str]:
    return live["metadata"].get("labels") or {}


def annotations_of(live: LiveObject | None) -> Mapping[str, str]:
    """Empty also for an object that is not there."""
    return (live["metadata"].get("annotations") or {}) if live is not None else {}


def is_going(live: LiveObject) -> bool:
    """Whether it is being deleted."""
    return live["metadata"].get("deletionTimestamp") is not None


def is_owned_by(live: LiveObject, uid: str | None) -> bool:
    """Whether it belongs to exactly that object, not to a namesake that is gone."""
    references = live["metadata"].get("ownerReferences") or ()
    return any(reference.get("uid") == uid for reference in references)


def conditions_of(live: LiveObject | None) -> dict[str, Mapping[str, Any]]:
    """Those in its status, by type; none for an object that is not there."""
    status = (live or {}).get("status") or {}
    return {str(item.get("type")): item for item in status.get("conditions") or ()}


def is_true(live: LiveObject, condition: str) -> bool:
    """Whether its status says that `condition` holds."""
    return conditions_of(live).get(condition, {}).get("status") == "True"


def message_when(live: LiveObject, condition: str, status: str) -> str | None:
    """What `condition` says for itself; None where it has another status than `status`."""
    found = conditions_of(live).get(condition, {})
    if found.get("status") != status:
        return None
    return str(found.get("message") or found.get("reason") or "no reason given")


def has_ended(pod: LiveObject) -> bool:
    """Whether none of its containers will run again, as in one that was evicted."""
    return (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")


def is_ready_pod(pod: LiveObject) -> bool:
    """Whether a Service would send requests to `pod`."""
    return is_true(pod, "Ready") and not is_going(pod)

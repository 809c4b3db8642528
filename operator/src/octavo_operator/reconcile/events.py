"""What a user would want to be told when it happens: changes of conditions, as events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.reconcile.conditions import (
    FEATURES_READY,
    PLACEMENT_READY,
    PROGRESSING,
    READY,
    UPGRADE_AVAILABLE,
    WORKLOAD_READY,
)

_TOLD: Final = (
    READY,
    WORKLOAD_READY,
    PROGRESSING,
    UPGRADE_AVAILABLE,
    FEATURES_READY,
    PLACEMENT_READY,
)
"""In this order; a reason that several conditions share is told once."""

_CHANGES_OF_NUMBER: Final = ("PodsStarting", "PodsStopping")
_UNREMARKABLE: Final = frozenset(
    {
        *("Creating", "UpToDate", "AllInEffect", "AllPodsReady", "Loading"),
        *_CHANGES_OF_NUMBER,
        *("Fits", "Proved", "NotNeeded", "Inspecting", "GPUMemoryUnknown"),
        *("Resolving", "WaitingForPods", "Deleting"),
    }
)
"""Every service and every adapter passes through these, or stays there."""

_NORMAL: Final = frozenset(
    {
        "Serving",
        "RollingOut",
        "Complete",
        "RolloutPaused",
        "ScaledToZero",
        "Sleeping",
        "NewerTemplate",
        "Loaded",
    }
)
_LIMIT: Final = 1000
"""The API takes 1024 characters."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """type is Normal or Warning, reason a condition's."""

    type: str
    reason: str
    message: str


def announcements(
    before: Mapping[str, Any] | None, after: Mapping[str, Any]
) -> tuple[Announcement, ...]:
    """What the step from one status to the next is worth telling, each reason once."""
    old = _reasons(before or {})
    told: dict[str, Announcement] = {}
    for condition in _by_type(after).values():
        kind, reason = condition["type"], condition["reason"]
        is_known = reason in old.values() or old.get(kind) == reason
        if kind not in _TOLD or reason in _UNREMARKABLE or is_known or reason in told:
            continue
        if kind == PROGRESSING and reason == "Complete" and old.get(kind) in _CHANGES_OF_NUMBER:
            continue  # no rollout has ended
        type_ = "Normal" if reason in _NORMAL else "Warning"
        told[reason] = Announcement(type_, reason, condition["message"][:_LIMIT])
    return tuple(told.values())


def _reasons(status: Mapping[str, Any]) -> dict[str, str]:
    return {kind: condition["reason"] for kind, condition in _by_type(status).items()}


def _by_type(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found = {item["type"]: item for item in status.get("conditions") or ()}
    return {kind: found[kind] for kind in _TOLD if kind in found}

"""Conditions in the form of metav1: a time that changes only when the status does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from octavo_operator.reconcile.live_object import LiveObject, conditions_of

MODEL_READY: Final = "ModelReady"
WORKLOAD_READY: Final = "WorkloadReady"
PROGRESSING: Final = "Progressing"
READY: Final = "Ready"
UPGRADE_AVAILABLE: Final = "UpgradeAvailable"
FEATURES_READY: Final = "FeaturesReady"
PLACEMENT_READY: Final = "PlacementReady"
SOURCE_RESOLVED: Final = "SourceResolved"
LOADED: Final = "Loaded"

_MESSAGE_LIMIT: Final = 1024
"""metav1 allows 32768; a condition is read in a terminal."""


@dataclass(frozen=True, slots=True)
class Condition:
    """status is "True", "False" or "Unknown"; reason a stable CamelCase word."""

    type: str
    status: str
    reason: str
    message: str


def merge_conditions(
    resource: LiveObject, current: Iterable[Condition], now: datetime
) -> list[dict[str, Any]]:
    """`current` as `resource` shall store it; times stay where it has the same status already."""
    before, merged = conditions_of(resource), []
    for condition in current:
        old = before.get(condition.type, {})
        since = old.get("lastTransitionTime") if old.get("status") == condition.status else None
        merged.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message[:_MESSAGE_LIMIT],
                "observedGeneration": resource["metadata"].get("generation", 0),
                "lastTransitionTime": since or timestamp(now),
            }
        )
    return merged


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as the API server writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""What an InferenceService's own status says of its adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from octavo_operator.reconcile.conditions import READY
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.resources.lora_adapter import served_name_of


def summary_status(
    reports: Iterable[tuple[LiveObject, Mapping[str, Any]]],
) -> dict[str, Any]:
    """The fields of `status`, from each LoRAAdapter that stays and its status as it will be."""
    entries = [_entry(resource, status) for resource, status in reports]
    entries.sort(key=lambda entry: str(entry["name"]))
    num_ready = sum(entry["ready"] for entry in entries)
    return {"adapters": entries, "summary": {"adapters": f"{num_ready}/{len(entries)}"}}


def is_same_summary(current: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """Whether writing `wanted` would change nothing."""
    current = current or {}
    counted = (current.get("summary") or {}).get("adapters")
    is_counted = bool(counted == wanted["summary"]["adapters"])
    return is_counted and bool((current.get("adapters") or []) == wanted["adapters"])


def _entry(resource: LiveObject, status: Mapping[str, Any]) -> dict[str, Any]:
    found = {item["type"]: item for item in status.get("conditions") or ()}
    ready = found[READY]
    return {
        "name": resource["metadata"]["name"],
        "servedName": served_name_of(resource),
        "ready": ready["status"] == "True",
        "reason": ready["reason"],
        "digest": str(status.get("resolvedDigest", "")),
        "desired": status.get("desired", 0),
        "loaded": status.get("loaded", 0),
    }

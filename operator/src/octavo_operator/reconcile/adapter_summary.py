"""What an InferenceService's own status says of its adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from octavo_operator.reconcile.conditions import READY
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.resources.lora_adapter import served_name_of

MOST_ENTRIES: Final = 500
"""Some 200 KB, with the API server's notes on them; an object holds 1.5 MB, and is sent whole with
every event. LoRAAdapters have their own status."""


def summary_status(
    reports: Iterable[tuple[LiveObject, Mapping[str, Any]]],
) -> dict[str, Any]:
    """The fields of `status`, from each LoRAAdapter that stays and its status as it will be.

    All are counted; where they are too many to be listed, those that are not ready come first.
    """
    entries = [_entry(resource, status) for resource, status in reports]
    entries.sort(key=lambda entry: (entry["ready"], str(entry["name"])))
    num_ready = sum(entry["ready"] for entry in entries)
    listed = sorted(entries[:MOST_ENTRIES], key=lambda entry: str(entry["name"]))
    return {"adapters": listed, "summary": {"adapters": f"{num_ready}/{len(entries)}"}}


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

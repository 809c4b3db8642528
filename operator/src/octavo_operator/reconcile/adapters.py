"""The status of a LoRAAdapter. Adapters are not loaded yet; each resource is told so."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from octavo_operator.errors import ResourceError
from octavo_operator.reconcile.conditions import READY, Condition, merge_conditions
from octavo_operator.reconcile.status import is_same_status
from octavo_operator.resources.lora_adapter import parse_lora_adapter


def adapter_status(resource: Mapping[str, Any], now: datetime) -> dict[str, Any] | None:
    """The status to write, or None when the present one is right."""
    if resource["metadata"].get("deletionTimestamp"):
        return None
    try:
        adapter = parse_lora_adapter(resource)
    except ResourceError as error:
        condition = Condition(READY, "False", "InvalidSpec", str(error))
    else:
        condition = Condition(
            READY,
            "False",
            "NotImplementedYet",
            f"this operator does not load adapters yet, so {adapter.served_name} is not served by "
            f"{adapter.service}",
        )
    generation = resource["metadata"].get("generation", 0)
    previous = (resource.get("status") or {}).get("conditions") or ()
    status = {
        "observedGeneration": generation,
        "conditions": merge_conditions(previous, [condition], generation, now),
    }
    return None if is_same_status(resource.get("status"), status) else status

"""InferenceServices for tests, as dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator.labels import API_VERSION


def inference_service(name: str = "chat", **spec: Any) -> dict[str, Any]:
    """A valid InferenceService; keywords replace fields of the spec, None removes them."""
    merged: dict[str, Any] = {"model": {"uri": "hf://org/name"}, "replicas": 1, **spec}
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "models", "uid": "uid-1", "generation": 1},
        "spec": {key: value for key, value in merged.items() if value is not None},
    }


def conditions(resource: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Status and reason by condition type."""
    found = (resource.get("status") or {}).get("conditions") or ()
    return {item["type"]: (item["status"], item.get("reason", "")) for item in found}


def condition_message(resource: Mapping[str, Any], kind: str) -> str:
    """The sentence of one condition."""
    found = {item["type"]: item for item in resource["status"]["conditions"]}
    return str(found[kind]["message"])

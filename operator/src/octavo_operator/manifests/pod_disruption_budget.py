"""PodDisruptionBudget: a node drain takes one worker pod at a time."""

from __future__ import annotations

from typing import Any

from octavo_operator.labels import (
    COMPONENT_FOLLOWER,
    LABEL_COMPONENT,
    LABEL_SERVICE,
    child_labels,
    selector_labels,
)
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.resources.inference_service import InferenceService


def pod_disruption_budget(service: InferenceService) -> dict[str, Any]:
    """The budget: `maxUnavailable: 1`, so that a single replica never blocks a node drain.

    Pods that are not ready may always be evicted: they serve nobody.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": child_metadata(service),
        "spec": {
            "maxUnavailable": 1,
            "selector": _selector(service),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _selector(service: InferenceService) -> dict[str, Any]:
    """Of a group every pod counts, since the whole of it restarts with one."""
    if service.parallelism.nodes == 1:
        return {"matchLabels": selector_labels(service.name)}
    components = [child_labels(service.name)[LABEL_COMPONENT], COMPONENT_FOLLOWER]
    return {
        "matchLabels": {LABEL_SERVICE: service.name},
        "matchExpressions": [
            {"key": LABEL_COMPONENT, "operator": "In", "values": components},
        ],
    }

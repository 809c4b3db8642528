"""PodDisruptionBudget: a node drain takes one worker pod at a time."""

from __future__ import annotations

from typing import Any

from octavo_operator.labels import selector_labels
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
            "selector": {"matchLabels": selector_labels(service.name)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }

"""Deployment: the worker pods of one InferenceService."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator.labels import selector_labels
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.resources.inference_service import InferenceService
from octavo_operator.resources.rollout import Rollout


def deployment(
    service: InferenceService,
    template: Mapping[str, Any],
    rollout: Rollout,
    annotations: Mapping[str, str],
) -> dict[str, Any]:
    """The Deployment around an already rendered pod template, which changes the way of `rollout`.

    `replicas` is left out while an autoscaler owns it, and so is never written back.
    """
    spec: dict[str, Any] = {
        "selector": {"matchLabels": selector_labels(service.name)},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {
                "maxSurge": rollout.max_surge,
                "maxUnavailable": rollout.max_unavailable,
            },
        },
        "paused": rollout.is_paused,
        "progressDeadlineSeconds": rollout.progress_deadline_s,
        "revisionHistoryLimit": 3,
        "template": dict(template),
    }
    if service.replicas is not None:
        spec["replicas"] = service.replicas
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": child_metadata(service, annotations),
        "spec": spec,
    }

"""HorizontalPodAutoscaler: holds a metric of the workers at its target.

The metric comes from the custom metrics API, under names that are valid there (the worker's own
have a colon); docs/scaling.md has the rules that serve them.
"""

from __future__ import annotations

from typing import Any, Final

from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.manifests.workload_kind import workload_kind
from octavo_operator.resources.inference_service import InferenceService
from octavo_operator.resources.scaling import Scaling

METRIC_NAMES: Final = {
    "WaitingRequests": "octavo_waiting_requests",
    "RunningRequests": "octavo_running_requests",
    "KVCacheUsage": "octavo_kv_cache_usage_percent",
}
LONGEST_WINDOW_S: Final = 3600
"""The API's own limit."""


def horizontal_pod_autoscaler(
    service: InferenceService, scaling: Scaling, floor: int
) -> dict[str, Any]:
    """The autoscaler; it goes no lower than `floor`, which is at least 1.

    Zero is not its business: it stops at one pod, and is off while the Deployment has none.
    """
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": child_metadata(service),
        "spec": {
            "scaleTargetRef": scale_target(service),
            "minReplicas": max(floor, 1),
            "maxReplicas": scaling.max_replicas,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": METRIC_NAMES[scaling.metric.type]},
                        "target": {
                            "type": "AverageValue",
                            "averageValue": str(scaling.metric.target),
                        },
                    },
                }
            ],
            "behavior": scaling_behavior(scaling),
        },
    }


def scale_target(service: InferenceService) -> dict[str, str]:
    """The workload, as autoscalers refer to it."""
    kind = workload_kind(service)
    return {"apiVersion": kind.api_version, "kind": kind.kind, "name": service.name}


def scaling_behavior(scaling: Scaling) -> dict[str, Any]:
    """Up at once, down only when demand was low for the whole cooldown."""
    return {
        "scaleUp": {"stabilizationWindowSeconds": 0},
        "scaleDown": {"stabilizationWindowSeconds": min(int(scaling.cooldown_s), LONGEST_WINDOW_S)},
    }

"""ScaledObject: KEDA holds a metric of the workers at its target, straight from Prometheus."""

from __future__ import annotations

from typing import Any, Final

from octavo_operator.labels import LABEL_SERVICE, prometheus_label
from octavo_operator.manifests.horizontal_pod_autoscaler import scale_target, scaling_behavior
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.resources.inference_service import InferenceService
from octavo_operator.resources.scaling import Scaling

_POLL_S: Final = 15
"""As often as the workers are scraped."""

QUERIES: Final = {
    "WaitingRequests": "sum(vllm:num_requests_waiting{%s})",
    "RunningRequests": "sum(vllm:num_requests_running{%s})",
    "KVCacheUsage": "sum(vllm:kv_cache_usage_perc{%s}) * 100",
}
"""Totals: KEDA divides by the number of pods (metricType AverageValue)."""


def scaled_object(
    service: InferenceService, scaling: Scaling, floor: int, prometheus_url: str
) -> dict[str, Any]:
    """The ScaledObject; it goes no lower than `floor`."""
    label = prometheus_label(LABEL_SERVICE)
    series = f'namespace="{service.namespace}",{label}="{service.name}"'
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": child_metadata(service),
        "spec": {
            "scaleTargetRef": scale_target(service),
            "pollingInterval": _POLL_S,
            "minReplicaCount": floor,
            "maxReplicaCount": scaling.max_replicas,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": scaling_behavior(scaling)}},
            "triggers": [
                {
                    "type": "prometheus",
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": prometheus_url,
                        "query": QUERIES[scaling.metric.type] % series,
                        "threshold": str(scaling.metric.target),
                    },
                }
            ],
        },
    }

"""PodMonitor: tells the Prometheus operator to scrape each worker pod."""

from __future__ import annotations

from typing import Any

from octavo_operator.labels import HTTP_PORT_NAME, LABEL_SERVICE, selector_labels
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.resources.inference_service import InferenceService


def pod_monitor(service: InferenceService) -> dict[str, Any]:
    """The PodMonitor; metrics come from the worker's own port."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": child_metadata(service),
        "spec": {
            "selector": {"matchLabels": selector_labels(service.name)},
            "podTargetLabels": [LABEL_SERVICE],
            "podMetricsEndpoints": [
                {"port": HTTP_PORT_NAME, "path": "/metrics", "interval": "15s"}
            ],
        },
    }

"""PodMonitor: tells the Prometheus operator to scrape each worker pod."""

from __future__ import annotations

from typing import Any, Final

from octavo_operator.labels import (
    ADMIN_PORT_NAME,
    HTTP_PORT_NAME,
    LABEL_ADMIN_PORT,
    LABEL_SERVICE,
    prometheus_label,
    selector_labels,
)
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.resources.inference_service import InferenceService

_HAS_ADMIN_PORT: Final = f"__meta_kubernetes_pod_labelpresent_{prometheus_label(LABEL_ADMIN_PORT)}"


def pod_monitor(service: InferenceService, *, has_single_port: bool = False) -> dict[str, Any]:
    """The PodMonitor; metrics come from the worker's admin port.

    has_single_port: there are pods of an older operator, which have them on the API's port. Those
    alone are asked there, so that no target of the others is down meanwhile.
    """
    endpoints = [_endpoint(ADMIN_PORT_NAME)]
    if has_single_port:
        other = {"sourceLabels": [_HAS_ADMIN_PORT], "regex": "true", "action": "drop"}
        endpoints.append({**_endpoint(HTTP_PORT_NAME), "relabelings": [other]})
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": child_metadata(service),
        "spec": {
            "selector": {"matchLabels": selector_labels(service.name)},
            "podTargetLabels": [LABEL_SERVICE],
            "podMetricsEndpoints": endpoints,
        },
    }


def _endpoint(port: str) -> dict[str, Any]:
    return {"port": port, "path": "/metrics", "interval": "15s"}

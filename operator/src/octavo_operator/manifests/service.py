"""Service: the address under which an InferenceService is reached inside the cluster."""

from __future__ import annotations

from typing import Any

from octavo_operator.labels import HTTP_PORT_NAME, selector_labels
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.manifests.worker_command import WORKER_PORT
from octavo_operator.resources.inference_service import InferenceService


def service_manifest(service: InferenceService) -> dict[str, Any]:
    """The Service; its endpoints are the ready pods only, those of the caller's zone first."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(service),
        "spec": {
            "type": "ClusterIP",
            "selector": selector_labels(service.name),
            "trafficDistribution": "PreferClose",
            "ports": [
                {
                    "name": HTTP_PORT_NAME,
                    "port": WORKER_PORT,
                    "targetPort": HTTP_PORT_NAME,
                    "protocol": "TCP",
                    "appProtocol": "http",
                }
            ],
        },
    }


def service_url(service: InferenceService) -> str:
    """The base URL of the API inside the cluster, without `/v1`."""
    return f"http://{service.name}.{service.namespace}.svc:{WORKER_PORT}"

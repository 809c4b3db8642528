"""InferencePool: the pods as a pool that a Gateway with an endpoint picker routes to.

Source: Gateway API inference extension, inference.networking.k8s.io/v1.
"""

from __future__ import annotations

from typing import Any, Final

from octavo_operator.labels import selector_labels
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.manifests.worker_command import WORKER_PORT
from octavo_operator.resources.inference_service import InferenceService

PICKER_PORT: Final = 9002
"""Where an endpoint picker answers gateways, as the chart of the extension has it."""


def inference_pool(service: InferenceService) -> dict[str, Any]:
    """The pool; its endpoint picker is the Service `<name>-epp`, which the operator does not make.

    `FailOpen`: while the picker is away the gateway still forwards, to any ready pod.
    """
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": child_metadata(service),
        "spec": {
            "selector": {"matchLabels": selector_labels(service.name)},
            "targetPorts": [{"number": WORKER_PORT}],
            "endpointPickerRef": {
                "name": picker_name(service),
                "port": {"number": PICKER_PORT},
                "failureMode": "FailOpen",
            },
        },
    }


def picker_name(service: InferenceService) -> str:
    """The Service of the endpoint picker that the pool refers to."""
    return f"{service.name}-epp"

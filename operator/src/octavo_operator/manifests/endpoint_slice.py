"""EndpointSlice: sends callers of a service without pods to the activator.

It stands beside the slices that the cluster keeps for the Service's selector; who routes to the
Service takes the endpoints of all of them.
"""

from __future__ import annotations

from typing import Any, Final

from octavo_operator.address import Address
from octavo_operator.labels import HTTP_PORT_NAME, MANAGED_BY
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.resources.inference_service import InferenceService

NAME_SUFFIX: Final = "-activator"


def activator_slice(service: InferenceService, activator: Address) -> dict[str, Any]:
    """The slice with the activator as the only endpoint."""
    metadata = child_metadata(service)
    metadata["name"] += NAME_SUFFIX
    metadata["labels"] = {
        **metadata["labels"],
        "kubernetes.io/service-name": service.name,
        "endpointslice.kubernetes.io/managed-by": MANAGED_BY,
    }
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": "IPv6" if ":" in activator.host else "IPv4",
        "endpoints": [{"addresses": [activator.host], "conditions": {"ready": True}}],
        "ports": [{"name": HTTP_PORT_NAME, "port": activator.port, "protocol": "TCP"}],
    }

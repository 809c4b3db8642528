"""NetworkPolicy: who may reach which port of a worker.

The API is for the namespace's own pods, the operator, which holds calls, and whom its installer
lets in besides (gateways). Metrics and what administrators do are for the operator and Prometheus.
"""

from __future__ import annotations

from typing import Any

from octavo_operator.labels import ADMIN_PORT_NAME, HTTP_PORT_NAME, LABEL_SERVICE, selector_labels
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.resources.inference_service import InferenceService
from octavo_operator.worker_peers import WorkerPeers


def network_policy(
    service: InferenceService, peers: WorkerPeers, *, has_single_port: bool = False
) -> dict[str, Any]:
    """The policy for incoming traffic; outgoing is free, since weights come from anywhere.

    has_single_port: there are pods of an older operator, whose metrics are on the API's port.
    Pods of one replica that spans nodes talk to each other on ports that NCCL picks.
    """
    is_group = service.parallelism.nodes > 1
    labels = {LABEL_SERVICE: service.name} if is_group else selector_labels(service.name)
    own_pods = {"matchLabels": labels}
    ingress: list[dict[str, Any]] = [
        {
            "from": [{"podSelector": {}}, *map(dict, peers.api)],
            "ports": [_port(HTTP_PORT_NAME)],
        }
    ]
    if peers.admin:  # a rule without peers would be for everybody
        names = (ADMIN_PORT_NAME, HTTP_PORT_NAME) if has_single_port else (ADMIN_PORT_NAME,)
        ingress.append({"from": [*map(dict, peers.admin)], "ports": [*map(_port, names)]})
    if is_group:
        ingress.append({"from": [{"podSelector": own_pods}]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": child_metadata(service),
        "spec": {
            "podSelector": own_pods,
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }


def _port(name: str) -> dict[str, Any]:
    return {"port": name, "protocol": "TCP"}

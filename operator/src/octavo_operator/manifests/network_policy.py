"""NetworkPolicy: who may reach the worker's port.

API, metrics and adapter routes share one port, so the policy is about peers: the namespace's own
pods, the operator, Prometheus, and whom the operator's installer lets in besides (gateways).
"""

from __future__ import annotations

from typing import Any

from octavo_operator.labels import HTTP_PORT_NAME, selector_labels
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.resources.inference_service import InferenceService
from octavo_operator.worker_peers import WorkerPeers


def network_policy(service: InferenceService, peers: WorkerPeers) -> dict[str, Any]:
    """The policy for incoming traffic; outgoing is free, since weights come from anywhere.

    Pods of one replica that spans nodes talk to each other on ports that NCCL picks.
    """
    own_pods = {"matchLabels": selector_labels(service.name)}
    ingress: list[dict[str, Any]] = [
        {
            "from": [{"podSelector": {}}, *map(dict, peers.others)],
            "ports": [{"port": HTTP_PORT_NAME, "protocol": "TCP"}],
        }
    ]
    if service.parallelism.nodes > 1:
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

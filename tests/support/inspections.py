"""What the pods of an inspection leave behind, and nodes with GPUs, as dicts."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from octavo_operator.labels import ANNOTATION_INSPECTS
from octavo_operator.placement.model_shape import ModelShape
from octavo_operator.reconcile.inspection import inspection_key
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.resources.inference_service import parse_inference_service

H100, L4 = "NVIDIA-H100-80GB-HBM3", "NVIDIA-L4"
MEMORY_MIB = {H100: 81559, L4: 23034}


def gpu_node(product: str, count: int = 8, name: str = "node") -> dict[str, Any]:
    """A node as GPU feature discovery labels it."""
    labels = {
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.memory": str(MEMORY_MIB[product]),
        "nvidia.com/gpu.count": str(count),
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "namespace": "", "labels": labels},
        "status": {"allocatable": {"nvidia.com/gpu": str(count)}},
    }


def inspected_pod(resource: dict[str, Any], shape: ModelShape) -> LiveObject:
    """A pod that has looked at the model of `resource` and found `shape`."""
    report = {**asdict(shape), "stored_bytes": None, "revision": "abc"}
    return _ended_pod(resource, {"exitCode": 0, "message": json.dumps(report)}, "Succeeded")


def failed_inspection(resource: dict[str, Any], message: str) -> LiveObject:
    """A pod that could not look at it."""
    return _ended_pod(resource, {"exitCode": 1, "message": message}, "Running")


def _ended_pod(resource: dict[str, Any], ended: dict[str, Any], phase: str) -> LiveObject:
    key = inspection_key(parse_inference_service(resource))
    container = {"name": "worker", "ready": False, "state": {"terminated": ended}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "chat-inspect-1",
            "namespace": "models",
            "annotations": {ANNOTATION_INSPECTS: key},
        },
        "status": {"phase": phase, "containerStatuses": [container]},
    }

"""ServiceAccount: an identity of its own for the worker's pods, with no rights and no token."""

from __future__ import annotations

from typing import Any

from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.resources.inference_service import InferenceService


def service_account(service: InferenceService) -> dict[str, Any]:
    """The ServiceAccount; the worker never talks to the Kubernetes API."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": child_metadata(service),
        "automountServiceAccountToken": False,
    }

"""`metadata` of every child: name, labels, owner, and the hash of what was applied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator.labels import ANNOTATION_APPLIED_HASH, API_VERSION, child_labels
from octavo_operator.manifests.digest import manifest_digest
from octavo_operator.resources.inference_service import KIND, InferenceService


def child_metadata(
    service: InferenceService, annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Metadata of a child that bears the service's own name."""
    metadata: dict[str, Any] = {
        "name": service.name,
        "namespace": service.namespace,
        "labels": child_labels(service.name),
        "ownerReferences": [owner_reference(service)],
    }
    if annotations:
        metadata["annotations"] = dict(annotations)
    return metadata


def owner_reference(service: InferenceService) -> dict[str, Any]:
    """Makes the cluster's garbage collector delete the child with its InferenceService.

    `blockOwnerDeletion` stays false: it would need a right on the resource's finalizers, and would
    only let a foreground deletion wait.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": service.name,
        "uid": service.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """`manifest` with the hash of its own content in an annotation."""
    metadata = dict(manifest["metadata"])
    metadata["annotations"] = {
        **metadata.get("annotations", {}),
        ANNOTATION_APPLIED_HASH: manifest_digest(manifest),
    }
    return {**manifest, "metadata": metadata}

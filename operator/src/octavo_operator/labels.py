"""Names written on Kubernetes objects: the API group, labels, annotations, the field manager.

Knows strings only. Everything that selects, owns or recognises an object uses these constants, so
that a rename is one line.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "serving.octavo.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

FIELD_MANAGER: Final = "octavo-operator"
"""Owner of every field the operator applies; never changes, or old fields would be orphaned."""

WORKER_CONTAINER: Final = "worker"
FETCH_CONTAINER: Final = "fetch"
HTTP_PORT_NAME: Final = "http"
ADMIN_PORT_NAME: Final = "admin"

FINALIZER: Final = f"{GROUP}/finalizer"
"""Holds a deleted LoRAAdapter until pods have unloaded it, or have had their time; not there while
its service has no pods that could have it."""

LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_SERVICE: Final = f"{GROUP}/service"
LABEL_ADMIN_PORT: Final = f"{GROUP}/admin-port"
"""On a pod: number of the port for metrics and administrators; pods without it have one port."""

APP_NAME: Final = "octavo-worker"
COMPANION_NAME: Final = "octavo-companion"
"""LABEL_NAME of pods that belong to a service and take no requests."""

COMPONENT_INSPECTION: Final = "inspection"
COMPONENT_FOLLOWER: Final = "follower"
"""Of pods that compute with another one, which serves."""
MANAGED_BY: Final = "octavo-operator"

ANNOTATION_APPLIED_HASH: Final = f"{GROUP}/applied-hash"
"""On a child: hash of the manifest as it was last applied."""

ANNOTATION_INSPECTS: Final = f"{GROUP}/inspects"
"""On an inspection Job and its pods: which model they look at."""

ANNOTATION_PLACEMENT: Final = f"{GROUP}/placement"
"""On the workload: GPUs of a replica as they were chosen, and what they were chosen for."""

ANNOTATION_POD_TEMPLATE: Final = f"{GROUP}/pod-template"
"""On the Deployment: the pod template as rendered, so that a newer operator can leave it alone."""

ANNOTATION_TEMPLATE_INPUTS: Final = f"{GROUP}/template-inputs"
"""On the Deployment: hash of what the user said about pods when the template was rendered."""

ANNOTATION_PINNED_IMAGE: Final = f"{GROUP}/pinned-image"
"""On the Deployment: the operator's default image when it was first applied."""

ANNOTATION_UPGRADE: Final = f"{GROUP}/upgrade"
"""On an InferenceService: `auto` follows the operator; any new value upgrades once, and tries a
template again that was rolled back."""

ANNOTATION_RESOLVE: Final = f"{GROUP}/resolve"
"""On a LoRAAdapter: any new value has its source looked up again, whose files may have changed."""

ANNOTATION_UPGRADED_BY: Final = f"{GROUP}/upgraded-by"
"""On the Deployment: the value of the upgrade annotation that its template answers to."""

ANNOTATION_GOOD_TEMPLATE: Final = f"{GROUP}/good-template"
"""On the Deployment: the last pod template whose rollout completed before the present one."""

ANNOTATION_SERVED_TEMPLATE: Final = f"{GROUP}/served-template"
"""On the Deployment: digest of the last pod template that served in all pods, one at least."""

ANNOTATION_REFUSED_TEMPLATE: Final = f"{GROUP}/refused-template"
"""On the Deployment: digest of the template that was rolled back, and why."""

ANNOTATION_STRIDE: Final = f"{GROUP}/rollout-stride"
"""On the Deployment: template digest and maxUnavailable of a rollout that found no spare room."""

ANNOTATION_REPLICAS_OWNER: Final = f"{GROUP}/replicas-owner"
"""On the Deployment: `operator` or `autoscaler`, whoever sets `replicas`."""


def selector_labels(service_name: str) -> dict[str, str]:
    """Labels that tell the pods of one InferenceService from all others; immutable once used."""
    return {LABEL_NAME: APP_NAME, LABEL_SERVICE: service_name}


def child_labels(service_name: str) -> dict[str, str]:
    """Labels of every object the operator creates for one InferenceService."""
    return {
        **selector_labels(service_name),
        LABEL_INSTANCE: service_name,
        LABEL_COMPONENT: "inference",
        LABEL_MANAGED_BY: MANAGED_BY,
    }


def prometheus_label(label: str) -> str:
    """The name that Prometheus gives to a label of a pod."""
    return "".join(letter if letter.isalnum() else "_" for letter in label)


def selector_string(labels: dict[str, str]) -> str:
    """The `a=b,c=d` form of an equality selector, keys sorted so that equal sets are equal text."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))

"""The worker's pod: container, volumes, placement and security, then the user's overlay.

Fits the `restricted` Pod Security Standard with a read-only root file system.
"""

from __future__ import annotations

from typing import Any, Final

from octavo_operator.labels import (
    ADMIN_PORT_NAME,
    FETCH_CONTAINER,
    HTTP_PORT_NAME,
    LABEL_ADMIN_PORT,
    LABEL_COMPONENT,
    LABEL_INSTANCE,
    WORKER_CONTAINER,
    child_labels,
    selector_labels,
)
from octavo_operator.manifests.leader_worker_set import check_group_name, with_follower
from octavo_operator.manifests.overlay import merge_overlay
from octavo_operator.manifests.overlay_check import check_overlaid
from octavo_operator.manifests.probes import worker_probes
from octavo_operator.manifests.volumes import cache_mounts, pod_volumes, worker_mounts
from octavo_operator.manifests.worker_command import (
    ADMIN_PORT,
    CACHE_MOUNT,
    ENDPOINT_REMOVAL_S,
    WORKER_PORT,
    fetch_command,
    is_downloaded,
    worker_command,
)
from octavo_operator.resources.inference_service import InferenceService
from octavo_operator.resources.model_uri import BucketModel, HubModel, ImageModel

KILL_MARGIN_S: Final = 10
"""Beyond drain: time to write what is left and exit before SIGKILL."""

CACHE_GROUP: Final = 65532
"""Group that may write to a cache volume, so that pods under any user id share it."""

_CLAIM_NAME: Final = "accelerator"
_TOKEN_KEY: Final = "token"


def pod_template(service: InferenceService, image: str, admin_key_sha256: str) -> dict[str, Any]:
    """PodTemplateSpec of the worker; of a group of pods the first one's, with the others' in it.

    Raises ResourceError when the overlay cannot be merged, or groups cannot be called so.
    """
    labels = {
        **selector_labels(service.name),
        LABEL_INSTANCE: service.name,
        LABEL_COMPONENT: child_labels(service.name)[LABEL_COMPONENT],
        LABEL_ADMIN_PORT: str(ADMIN_PORT),
    }
    spec = _pod_spec(service, image, admin_key_sha256)
    rendered = {"metadata": {"labels": labels}, "spec": spec}
    template = merge_overlay(rendered, service.template, "spec.template")
    check_overlaid(template, selector_labels(service.name))
    if service.parallelism.nodes == 1:
        return template
    check_group_name(service)
    return with_follower(template)


def _pod_spec(service: InferenceService, image: str, admin_key_sha256: str) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "serviceAccountName": service.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": (
            ENDPOINT_REMOVAL_S + service.rollout.drain_s + KILL_MARGIN_S
        ),
        "securityContext": _pod_security(service),
        **_init_containers(service, image),
        "containers": [_container(service, image, admin_key_sha256)],
        "volumes": pod_volumes(service),
        "topologySpreadConstraints": _spread(service.name),
    }
    node_selector = service.accelerator.all_node_labels
    tolerations = _tolerations(service)
    if node_selector:
        spec["nodeSelector"] = node_selector
    if tolerations:
        spec["tolerations"] = tolerations
    pull_secrets = _pull_secrets(service)
    if pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in pull_secrets]
    if service.accelerator.claim_template is not None:
        spec["resourceClaims"] = [
            {
                "name": _CLAIM_NAME,
                "resourceClaimTemplateName": service.accelerator.claim_template,
            }
        ]
    return spec


def _init_containers(service: InferenceService, image: str) -> dict[str, Any]:
    """On a volume that pods share, one downloads while others wait, and all find it checked.

    Without such a volume the worker downloads by itself, beside the rest of its start.
    """
    if service.cache_claim is None or not isinstance(service.model.source, HubModel | BucketModel):
        return {}
    container = {
        "name": FETCH_CONTAINER,
        "image": image,
        "command": fetch_command(service),
        "env": _environment(service),
        **_credentials(_model_secrets(service)),
        "securityContext": _container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": cache_mounts(),
    }
    return {"initContainers": [container]}


def _container_security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
    }


def _container(service: InferenceService, image: str, admin_key_sha256: str) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": WORKER_CONTAINER,
        "image": image,
        "command": worker_command(service, admin_key_sha256),
        "env": _environment(service),
        **_credentials(_worker_secrets(service)),
        "ports": [
            {"name": HTTP_PORT_NAME, "containerPort": WORKER_PORT, "protocol": "TCP"},
            {"name": ADMIN_PORT_NAME, "containerPort": ADMIN_PORT, "protocol": "TCP"},
        ],
        **worker_probes(),
        "securityContext": _container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": worker_mounts(service),
    }
    resources = _resources(service)
    if resources:
        container["resources"] = resources
    return container


def _environment(service: InferenceService) -> list[dict[str, Any]]:
    """HOME and caches point at the only places that can be written to."""
    environment: list[dict[str, Any]] = [
        {"name": "HOME", "value": "/tmp"},
        {"name": "TRITON_CACHE_DIR", "value": f"{CACHE_MOUNT}/triton"},
    ]
    secret = _hub_secret(service)
    if secret is not None:
        reference = {"name": secret, "key": _TOKEN_KEY, "optional": True}
        environment.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    return environment


def _hub_secret(service: InferenceService) -> str | None:
    """Whose token a process has for the hub: there is one variable for it, so the model's first."""
    if service.model.secret is not None and isinstance(service.model.source, HubModel):
        return service.model.secret
    lora = service.engine.lora
    return lora.secrets[0] if lora is not None and lora.secrets else None


def _credentials(secrets: list[str]) -> dict[str, Any]:
    """Every key of the Secrets as a variable (HF_TOKEN, AWS_ACCESS_KEY_ID, ...).

    A hub token may also be stored under `token`; kubelet leaves a variable alone whose optional
    key is missing, so either spelling works. A missing Secret keeps the container from starting.
    """
    return {"envFrom": [{"secretRef": {"name": name}} for name in secrets]} if secrets else {}


def _model_secrets(service: InferenceService) -> list[str]:
    secret = service.model.secret
    return [secret] if secret is not None and is_downloaded(service.model.source) else []


def _worker_secrets(service: InferenceService) -> list[str]:
    """The model's comes last, which wins where two hold the same key."""
    lora, model = service.engine.lora, _model_secrets(service)
    return [*(name for name in (lora.secrets if lora else ()) if name not in model), *model]


def _pull_secrets(service: InferenceService) -> tuple[str, ...]:
    """Of image volumes, each once."""
    lora = service.engine.lora
    names = [service.model.secret] if isinstance(service.model.source, ImageModel) else []
    names += [image.pull_secret for image in lora.images] if lora is not None else []
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _resources(service: InferenceService) -> dict[str, Any]:
    accelerator = service.accelerator
    if accelerator.claim_template is not None:
        return {"claims": [{"name": _CLAIM_NAME}]}
    if accelerator.resource is None:
        return {}
    amount = {accelerator.resource: str(service.parallelism.gpus_per_pod)}
    return {"requests": amount, "limits": dict(amount)}


def _pod_security(service: InferenceService) -> dict[str, Any]:
    security: dict[str, Any] = {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if service.cache_claim is not None:
        security["fsGroup"] = CACHE_GROUP
        security["fsGroupChangePolicy"] = "OnRootMismatch"
    return security


def _tolerations(service: InferenceService) -> list[dict[str, Any]]:
    """The user's, and one for the taint that GPU nodes usually carry."""
    tolerations = [dict(toleration) for toleration in service.accelerator.tolerations]
    if service.accelerator.resource is not None:
        usual = {
            "key": service.accelerator.resource,
            "operator": "Exists",
            "effect": "NoSchedule",
        }
        if usual not in tolerations:
            tolerations.append(usual)
    return tolerations


def _spread(service_name: str) -> list[dict[str, Any]]:
    """Spread over nodes and zones where possible; never refuse to run for it."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector_labels(service_name)},
            "matchLabelKeys": ["pod-template-hash"],
        }
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]

"""Job: looks at a model's configuration before anything is placed, and says what it found.

Its pod is the worker's own pod without what serving needs: same image, volumes, Secrets and nodes,
no GPU, no ports. It leaves the model's shape as its container's last words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from octavo_operator.labels import (
    ANNOTATION_INSPECTS,
    COMPANION_NAME,
    COMPONENT_INSPECTION,
    LABEL_COMPONENT,
    LABEL_INSTANCE,
    LABEL_NAME,
    LABEL_SERVICE,
    WORKER_CONTAINER,
)
from octavo_operator.manifests.digest import manifest_digest
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.manifests.volumes import is_for_serving
from octavo_operator.manifests.worker_command import CACHE_MOUNT, is_downloaded, model_argument
from octavo_operator.resources.inference_service import InferenceService

INSPECTION_FLAGS: Final = ("--hf-overrides",)
"""Of `engine.args`: flags that change what a model is."""

TERMINATION_LOG: Final = "/dev/termination-log"
KEPT_AFTER_END_S: Final = 600
"""A Job that failed is taken away by the cluster then, and tried again."""

_LONGEST_NAME: Final = 63
_DEADLINE_S: Final = 900
_ATTEMPTS: Final = 3
_USAGE_STATUS: Final = 2
"""What `octavo inspect` ends with when trying again is of no use."""

_RESOURCES: Final[Mapping[str, Mapping[str, str]]] = {
    "requests": {"cpu": "100m", "memory": "768Mi"},
    "limits": {"memory": "2Gi"},
}
_KEPT_OF_POD: Final = (
    "serviceAccountName",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "securityContext",
    "nodeSelector",
    "affinity",
    "tolerations",
    "imagePullSecrets",
    "priorityClassName",
    "dnsConfig",
    "dnsPolicy",
    "hostAliases",
)
_KEPT_OF_CONTAINER: Final = (
    "image",
    "imagePullPolicy",
    "env",
    "envFrom",
    "securityContext",
    "terminationMessagePolicy",
)


def inspection_job(
    service: InferenceService, template: Mapping[str, Any], key: str
) -> dict[str, Any]:
    """The Job for the model that `key` stands for; `template` is the worker's pod template.

    The pod template of a Job cannot change, so its name follows from the content.
    """
    spec = {
        "backoffLimit": _ATTEMPTS,
        "activeDeadlineSeconds": _DEADLINE_S,
        "ttlSecondsAfterFinished": KEPT_AFTER_END_S,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": WORKER_CONTAINER,
                        "operator": "In",
                        "values": [_USAGE_STATUS],
                    },
                }
            ]
        },
        "template": {
            "metadata": {"labels": _labels(service), "annotations": {ANNOTATION_INSPECTS: key}},
            "spec": _pod_spec(service, template["spec"]),
        },
    }
    ending = f"-inspect-{manifest_digest(spec)[:8]}"
    metadata = child_metadata(service, {ANNOTATION_INSPECTS: key})
    name = service.name[: _LONGEST_NAME - len(ending)] + ending
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**metadata, "name": name},
        "spec": spec,
    }


def _labels(service: InferenceService) -> dict[str, str]:
    """Not those of the worker's pods: nothing may send requests to this one."""
    return {
        LABEL_NAME: COMPANION_NAME,
        LABEL_SERVICE: service.name,
        LABEL_INSTANCE: service.name,
        LABEL_COMPONENT: COMPONENT_INSPECTION,
    }


def _pod_spec(service: InferenceService, worker: Mapping[str, Any]) -> dict[str, Any]:
    volumes = [volume for volume in worker.get("volumes", ()) if not is_for_serving(volume["name"])]
    return {
        **{name: worker[name] for name in _KEPT_OF_POD if name in worker},
        "restartPolicy": "Never",
        "containers": [_container(service, worker)],
        "volumes": volumes,
    }


def _container(service: InferenceService, worker: Mapping[str, Any]) -> dict[str, Any]:
    (serving,) = (item for item in worker["containers"] if item["name"] == WORKER_CONTAINER)
    mounts = [
        mount for mount in serving.get("volumeMounts", ()) if not is_for_serving(mount["name"])
    ]
    return {
        "name": WORKER_CONTAINER,
        **{name: serving[name] for name in _KEPT_OF_CONTAINER if name in serving},
        "command": inspect_command(service),
        "resources": {name: dict(amounts) for name, amounts in _RESOURCES.items()},
        "volumeMounts": mounts,
    }


def inspect_command(service: InferenceService) -> list[str]:
    """`octavo inspect` of the model, as the worker would serve it."""
    engine, model = service.engine, service.model
    flags = [(flag, engine.argument(flag)) for flag in INSPECTION_FLAGS]
    return [
        "octavo",
        "inspect",
        model_argument(model.source),
        *(["--revision", model.revision] if model.revision is not None else []),
        *["--dtype", engine.dtype],
        *(word for flag, value in flags if value is not None for word in (flag, value)),
        *(["--download-dir", CACHE_MOUNT] if is_downloaded(model.source) else []),
        "--json",
        "--output",
        TERMINATION_LOG,
    ]

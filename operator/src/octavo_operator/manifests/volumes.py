"""Volumes of the worker's pod and where the container sees them.

The root file system is read-only; what must be written goes to /tmp and the model cache.
"""

from __future__ import annotations

from typing import Any, Final

from octavo_operator.manifests.adapter_list import adapter_list_name
from octavo_operator.manifests.digest import manifest_digest
from octavo_operator.manifests.worker_command import (
    ADAPTER_LIST_MOUNT,
    CACHE_MOUNT,
    MODEL_MOUNT,
    STATE_MOUNT,
    api_key_paths,
)
from octavo_operator.resources.inference_service import InferenceService
from octavo_operator.resources.lora_capacity import LoraCapacity
from octavo_operator.resources.model_uri import ImageModel, VolumeModel

TMP_VOLUME: Final = "tmp"
CACHE_VOLUME: Final = "model-cache"
MODEL_VOLUME: Final = "model"
SHARED_MEMORY_VOLUME: Final = "shared-memory"
_API_KEY_PREFIX: Final = "api-keys-"
_ADAPTER_PREFIX: Final = "adapters-"
STATE_VOLUME: Final = "state"
LIST_VOLUME: Final = "adapter-list"
ADAPTER_MOUNT: Final = "/adapters"


def pod_volumes(service: InferenceService) -> list[dict[str, Any]]:
    """`spec.volumes` of the pod."""
    volumes: list[dict[str, Any]] = [
        {"name": TMP_VOLUME, "emptyDir": {}},
        {"name": CACHE_VOLUME, **_cache_source(service)},
    ]
    match service.model.source:
        case VolumeModel(claim=claim):
            volumes.append({"name": MODEL_VOLUME, **_claim(claim)})
        case ImageModel(reference=reference):
            volumes.append({"name": MODEL_VOLUME, **_image(reference)})
        case _:
            pass
    if needs_shared_memory(service):
        volumes.append({"name": SHARED_MEMORY_VOLUME, "emptyDir": {"medium": "Memory"}})
    for index, secret in enumerate(service.api_keys):
        volumes.append({"name": _api_key_volume(index), "secret": {"secretName": secret}})
    if service.engine.lora is not None:
        volumes.append({"name": STATE_VOLUME, "emptyDir": {}})
        # A pod may be there before the first adapter.
        source = {"name": adapter_list_name(service.name), "optional": True}
        volumes.append({"name": LIST_VOLUME, "configMap": source})
        volumes += _adapter_volumes(service.engine.lora)
    return volumes


def cache_mounts() -> list[dict[str, Any]]:
    """`volumeMounts` of whatever downloads."""
    return [
        {"name": TMP_VOLUME, "mountPath": "/tmp"},
        {"name": CACHE_VOLUME, "mountPath": CACHE_MOUNT},
    ]


def worker_mounts(service: InferenceService) -> list[dict[str, Any]]:
    """`volumeMounts` of the worker container."""
    mounts = cache_mounts()
    if isinstance(service.model.source, VolumeModel | ImageModel):
        mounts.append({"name": MODEL_VOLUME, "mountPath": MODEL_MOUNT, "readOnly": True})
    if needs_shared_memory(service):
        mounts.append({"name": SHARED_MEMORY_VOLUME, "mountPath": "/dev/shm"})
    for index, path in enumerate(api_key_paths(service)):
        mounts.append({"name": _api_key_volume(index), "mountPath": path, "readOnly": True})
    if service.engine.lora is not None:
        mounts.append({"name": STATE_VOLUME, "mountPath": STATE_MOUNT})
        mounts.append({"name": LIST_VOLUME, "mountPath": ADAPTER_LIST_MOUNT, "readOnly": True})
        for volume in _adapter_volumes(service.engine.lora):
            path = f"{ADAPTER_MOUNT}/{volume['name']}"
            mounts.append({"name": volume["name"], "mountPath": path, "readOnly": True})
    return mounts


def is_for_serving(volume: str) -> bool:
    """Whether a volume of that name is of no use to a pod that only looks at the model."""
    is_other = volume.startswith((_API_KEY_PREFIX, _ADAPTER_PREFIX))
    return is_other or volume in (SHARED_MEMORY_VOLUME, STATE_VOLUME, LIST_VOLUME)


def needs_shared_memory(service: InferenceService) -> bool:
    """Whether processes of one pod exchange tensors: /dev/shm has only 64 MiB by default."""
    return service.parallelism.gpus_per_pod > 1


def _cache_source(service: InferenceService) -> dict[str, Any]:
    if service.cache_claim is None:
        return {"emptyDir": {}}
    return {"persistentVolumeClaim": {"claimName": service.cache_claim}}


def _adapter_volumes(lora: LoraCapacity) -> list[dict[str, Any]]:
    """Named after what is in them, so that one more in the list renames no other."""
    return [
        *({"name": _adapter_volume(claim), **_claim(claim)} for claim in lora.claims),
        *(
            {"name": _adapter_volume(image.reference), **_image(image.reference)}
            for image in lora.images
        ),
    ]


def _adapter_volume(source: str) -> str:
    return f"{_ADAPTER_PREFIX}{manifest_digest(source)[:10]}"


def _claim(name: str) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}


def _image(reference: str) -> dict[str, Any]:
    return {"image": {"reference": reference, "pullPolicy": "IfNotPresent"}}


def _api_key_volume(index: int) -> str:
    return f"{_API_KEY_PREFIX}{index}"

"""Where a pod finds the files of an adapter, or what it lacks to find them.

Told by the pod itself and not by the InferenceService: its pods may be of an earlier template, and
a volume may have come by `spec.template`.
"""

from __future__ import annotations

from octavo_operator.reconcile.adapter_facts import (
    SECRET_NOT_IN_PODS,
    SOURCE_NOT_MOUNTED,
    Failure,
)
from octavo_operator.reconcile.worker_pod import WorkerPod
from octavo_operator.resources.lora_adapter import LoRAAdapter
from octavo_operator.resources.model_uri import (
    BucketModel,
    FileModel,
    HubModel,
    ImageModel,
    ModelSource,
    VolumeModel,
)


def adapter_path(source: ModelSource, pod: WorkerPod) -> str | None:
    """What the pod's worker is told to load; None when the pod lacks the volume."""
    match source:
        case HubModel(repository=repository):
            return f"hf://{repository}"
        case BucketModel(bucket=bucket, prefix=prefix):
            return f"s3://{bucket}/{prefix}"
        case FileModel(path=path):
            return path
        case VolumeModel(claim=claim, path=path):
            mount = pod.claims.get(claim)
            return None if mount is None else f"{mount}/{path}"
        case ImageModel(reference=reference):
            return pod.images.get(reference)
    return None


def obstacle_to(adapter: LoRAAdapter, pod: WorkerPod) -> Failure | None:
    """Why `pod` cannot reach the source of `adapter`, with what to add to the service."""
    if adapter_path(adapter.source, pod) is None:
        return Failure(
            SOURCE_NOT_MOUNTED,
            f"pods of {adapter.service} do not mount {adapter.uri}, and a running pod cannot be "
            f"given a volume; add it to that InferenceService: spec.engine.lora.sources: "
            f"[{_wanted_volume(adapter.source)}]",
        )
    is_fetched = isinstance(adapter.source, HubModel | BucketModel)
    if is_fetched and adapter.secret is not None and adapter.secret not in pod.secrets:
        return Failure(
            SECRET_NOT_IN_PODS,
            f"pods of {adapter.service} do not have Secret {adapter.secret}, and a running pod "
            f"cannot be given one; add it to that InferenceService: spec.engine.lora.sources: "
            f"[{{secretRef: {{name: {adapter.secret}}}}}]",
        )
    return None


def _wanted_volume(source: ModelSource) -> str:
    match source:
        case VolumeModel(claim=claim):
            return f"{{pvc: {{name: {claim}}}}}"
        case ImageModel(reference=reference):
            return f'{{image: {{reference: "{reference}"}}}}'
    return ""

"""What a pod of the inspection Job has found out about a model.

The Job runs `octavo inspect` in the worker's image, with the worker's volumes and Secrets, so the
operator needs neither the network nor a Secret. Its last words are the model's shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo_operator.labels import ANNOTATION_INSPECTS, WORKER_CONTAINER
from octavo_operator.manifests.digest import manifest_digest
from octavo_operator.manifests.inspection_job import INSPECTION_FLAGS
from octavo_operator.manifests.kinds import JOB, kind_of
from octavo_operator.placement.model_shape import ModelShape, read_report
from octavo_operator.reconcile.live_object import LiveObject, annotations_of, is_true, message_when
from octavo_operator.reconcile.observed import Observed
from octavo_operator.reconcile.pod_problems import pod_problems
from octavo_operator.resources.inference_service import InferenceService


@dataclass(frozen=True, slots=True)
class Inspection:
    """failure: why there is no shape, as far as that is known."""

    shape: ModelShape | None = None
    failure: str = ""


def inspection_key(service: InferenceService) -> str:
    """Tells models apart whose shape may differ: a hash of all that it depends on."""
    model, engine = service.model, service.engine
    flags = [engine.argument(flag) for flag in INSPECTION_FLAGS]
    return manifest_digest([model.uri, model.revision, engine.dtype, *flags])


def read_inspection(service: InferenceService, observed: Observed, key: str) -> Inspection:
    """What is known from the pods that looked at the model with this key."""
    pods = [pod for pod in observed.companions if _inspects(pod) == key]
    for pod in pods:
        ended = _ended(pod)
        shape = read_report(str(ended.get("message") or "")) if ended else None
        if shape is not None:
            return Inspection(shape)
    problems = pod_problems(service, pods)
    said = problems[0].message if problems else ""
    for job in inspection_jobs(observed, key):
        said = said or message_when(job, "Failed", "True") or _lost_report(job)
    return Inspection(None, f"the model cannot be inspected: {said}" if said else "")


def inspection_jobs(observed: Observed, key: str) -> tuple[LiveObject, ...]:
    """The Jobs that look, or have looked, at the model with this key."""
    jobs = (child for child in observed.children if kind_of(child) == JOB)
    return tuple(job for job in jobs if _inspects(job) == key and observed.is_owned(job))


def _lost_report(job: LiveObject) -> str:
    """Its pod may have gone before anybody read what it had found, with its node for example."""
    if not is_true(job, "Complete"):
        return ""
    name = job["metadata"]["name"]
    return f"Job {name} is complete and its pod's report is gone; delete the Job for another look"


def _inspects(live: LiveObject) -> str:
    return str(annotations_of(live).get(ANNOTATION_INSPECTS, ""))


def _ended(pod: LiveObject) -> Mapping[str, Any]:
    """How our container has ended; others may have been put beside it (a service mesh's, say)."""
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        if container.get("name") != WORKER_CONTAINER:
            continue
        ended = (container.get("state") or {}).get("terminated")
        if ended:
            return dict(ended)
    return {}

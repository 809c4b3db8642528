"""What keeps a pod from serving, read from its status.

Knows the reasons kubelet and scheduler write; turns them into few stable reasons of ours and a
sentence that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.labels import WORKER_CONTAINER
from octavo_operator.reconcile.live_object import LiveObject, conditions_of, is_going, is_ready_pod
from octavo_operator.resources.inference_service import InferenceService

_IMAGE_REASONS: Final = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"}
)
_CONFIG_REASONS: Final = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_SEVERITY: Final = (
    "OutOfMemory",
    "CrashLooping",
    "ImagePullFailed",
    "ContainerConfigError",
    "PodFailed",
    "InsufficientGPU",
    "InsufficientResources",
    "Unschedulable",
)


@dataclass(frozen=True, slots=True)
class PodProblem:
    """One reason (a stable word) and one sentence."""

    reason: str
    message: str

    @property
    def is_lack_of_room(self) -> bool:
        """Whether the pod would run if a node had more to give."""
        return self.reason in ("InsufficientGPU", "InsufficientResources")


def pod_problems(service: InferenceService, pods: Iterable[LiveObject]) -> tuple[PodProblem, ...]:
    """The problems among `pods`, gravest first; none when all are well or simply starting.

    Equals go by pod name, so that the first does not flap. A pod that has failed for good (evicted,
    say) stays in the list until somebody deletes it; once a younger one serves, it is history.
    """
    found = []
    ordered = sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))
    proved_at = max((_created_at(pod) for pod in ordered if is_ready_pod(pod)), default="")
    for pod in ordered:
        if _has_failed(pod) and _created_at(pod) < proved_at:
            continue
        problem = _problem(service, pod)
        if problem is not None:
            found.append(problem)
    return tuple(sorted(found, key=lambda problem: _SEVERITY.index(problem.reason)))


def _created_at(pod: LiveObject) -> str:
    return str(pod["metadata"].get("creationTimestamp") or "")


def _has_failed(pod: LiveObject) -> bool:
    return (pod.get("status") or {}).get("phase") == "Failed"


def _problem(service: InferenceService, pod: LiveObject) -> PodProblem | None:
    if is_going(pod):
        return None
    status = pod.get("status") or {}
    name = pod["metadata"]["name"]
    if _has_failed(pod):
        detail = status.get("message") or status.get("reason") or "no reason given"
        return PodProblem("PodFailed", f"pod {name} failed: {_sentence(detail)}")
    scheduled = conditions_of(pod).get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return _scheduling_problem(service, name, scheduled.get("message") or "")
    containers = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    for container in containers:
        problem = _container_problem(name, container)
        if problem is not None:
            return problem
    return None


def _scheduling_problem(service: InferenceService, pod_name: str, message: str) -> PodProblem:
    accelerator = service.accelerator
    is_gpu = f"Insufficient {accelerator.resource}" in message or (
        accelerator.claim_template is not None and "cannot allocate" in message
    )
    if not is_gpu and "Insufficient " in message:
        return PodProblem(
            "InsufficientResources",
            f"no node has room for pod {pod_name}: {_sentence(message)}; free some, add a node, or "
            f"ask for less in spec.template",
        )
    if not is_gpu:
        return PodProblem("Unschedulable", f"no node takes pod {pod_name}: {_sentence(message)}")
    wanted = f"{service.parallelism.gpus_per_pod} {accelerator.resource}"
    if accelerator.claim_template is not None:
        wanted = f"the devices of ResourceClaimTemplate {accelerator.claim_template}"
    if accelerator.product is not None:
        wanted += f" ({accelerator.product})"
    return PodProblem(
        "InsufficientGPU",
        f"pod {pod_name} needs {wanted} on one node and no node has as many free; free one, add a "
        f"node, or lower replicas. Scheduler: {_sentence(message)}",
    )


def _container_problem(pod_name: str, container: Mapping[str, Any]) -> PodProblem | None:
    if container.get("ready"):
        return None
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason = waiting.get("reason") or ""
    detail = _sentence(waiting.get("message") or reason)
    if reason in _IMAGE_REASONS:
        image = container.get("image") or "the image"
        return PodProblem(
            "ImagePullFailed",
            f"pod {pod_name} cannot pull {image}: {detail}; check the name, the tag and "
            f"imagePullSecrets",
        )
    if reason in _CONFIG_REASONS:
        return PodProblem(
            "ContainerConfigError",
            f"pod {pod_name} cannot start: {detail}; check that the Secrets and claims that the "
            f"spec names exist",
        )
    return _exit_problem(pod_name, container, is_waiting=reason == "CrashLoopBackOff")


def _exit_problem(
    pod_name: str, container: Mapping[str, Any], *, is_waiting: bool
) -> PodProblem | None:
    last = (container.get("lastState") or {}).get("terminated") or (
        container.get("state") or {}
    ).get("terminated")
    if not last and not is_waiting:
        return None
    last = last or {}
    if last.get("reason") == "OOMKilled":
        return PodProblem(
            "OutOfMemory",
            f"container {container.get('name')} of pod {pod_name} was killed for memory; raise its "
            f"memory limit in spec.template, or lower engine.maxModelLen or engine.maxNumSeqs",
        )
    if last.get("exitCode") == 0 and not is_waiting:
        return None
    said = _last_line(last.get("message") or "")
    ending = f": {said}" if said else ""
    logs = f"kubectl logs {pod_name} -c {container.get('name', WORKER_CONTAINER)} --previous"
    return PodProblem(
        "CrashLooping",
        f"pod {pod_name} ended with exit code {last.get('exitCode', 'unknown')}{ending} (see "
        f"{logs})",
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _sentence(text: str) -> str:
    return " ".join(text.split())[:400].rstrip(".")

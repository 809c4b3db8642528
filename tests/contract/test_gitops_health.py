"""Argo CD and Flux make of the operator's own statuses what a person would."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gitops_health import argo_health, flux_health
from inference_services import inference_service
from inspections import L4, inspected_pod
from model_shapes import LLAMA_405B
from octavo_operator.labels import API_VERSION
from octavo_operator.placement.model_shape import ModelShape
from octavo_operator.reconcile.adapter_claims import REFUSALS
from octavo_operator.reconcile.adapter_facts import PERMANENT_REASONS
from octavo_operator.reconcile.adapter_world import AdapterWorld
from octavo_operator.reconcile.adapters import plan_adapters
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.reconcile.observed import Observed
from octavo_operator.reconcile.plan import plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ALL_READY = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}
STARTING = {"replicas": 1, "updatedReplicas": 1}
SURGING = {**ALL_READY, "replicas": 2, "updatedReplicas": 1}
DONE = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


def pod(**status: Any) -> LiveObject:
    return {"metadata": {"name": "chat-1", "namespace": "models"}, "status": status}


def waiting(reason: str) -> LiveObject:
    state = {"waiting": {"reason": reason, "message": "because"}}
    return pod(phase="Running", containerStatuses=[{"name": "worker", "state": state}])


def unscheduled() -> LiveObject:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
    }
    return pod(phase="Pending", conditions=[condition])


def reported(
    counts: dict[str, Any] | None,
    *pods: LiveObject,
    findings: ModelShape | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """An InferenceService with the status that the operator gives it; counts: its Deployment's."""
    resource = inference_service(**spec)
    children: list[LiveObject] = []
    if counts is not None:
        first = plan(Observed(resource, (), (), frozenset()), "worker:1", NOW)
        for apply in first.applies:
            manifest = dict(apply.manifest)
            manifest["metadata"] = {**manifest["metadata"], "uid": "u", "generation": 1}
            if manifest["kind"] == "Deployment":
                manifest["status"] = {"observedGeneration": 1, **counts}
            children.append(manifest)
    looked = (inspected_pod(resource, findings),) if findings is not None else ()
    observed = Observed(resource, tuple(children), pods, frozenset(), companions=looked)
    planned = plan(observed, "worker:1", NOW)
    return {**resource, "status": planned.status}


STALE = reported(ALL_READY)
STALE["metadata"] = {**STALE["metadata"], "generation": 2}

AUTO = {"tensor": "Auto"}
TOO_LARGE = reported(None, findings=LLAMA_405B, parallelism=AUTO, accelerator={"product": L4})

SLEEPING = reported(ALL_READY)
SLEEPING["status"]["conditions"] = [
    {"type": "Progressing", "status": "False", "reason": "Complete", "message": "done"},
    {"type": "Ready", "status": "False", "reason": "Sleeping", "message": "nobody has called"},
]

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("unseen", inference_service(), "Progressing", "InProgress"),
    ("spec-just-changed", STALE, "Progressing", "InProgress"),
    ("creating", reported(None), "Progressing", "InProgress"),
    ("loading", reported(STARTING), "Progressing", "InProgress"),
    ("serving", reported(ALL_READY), "Healthy", "Current"),
    ("rolling-out", reported(SURGING), "Progressing", "InProgress"),
    ("pod-lost", reported({**STARTING, "conditions": [DONE]}), "Progressing", "InProgress"),
    ("at-zero", reported({}, replicas=0), "Healthy", "Current"),
    ("sleeping", SLEEPING, "Healthy", "Current"),
    ("paused", reported(SURGING, rollout={"paused": True}), "Suspended", "InProgress"),
    ("no-spare-gpu", reported(STARTING, unscheduled()), "Progressing", "InProgress"),
    ("crash-loop", reported(STARTING, waiting("CrashLoopBackOff")), "Degraded", "Failed"),
    ("new-revision-crashes", reported(SURGING, waiting("CrashLoopBackOff")), "Degraded", "Failed"),
    ("image-missing", reported(STARTING, waiting("ImagePullBackOff")), "Degraded", "Failed"),
    ("deadline", reported({**STARTING, "conditions": [LATE]}), "Degraded", "Failed"),
    ("looking-at-the-model", reported(None, parallelism=AUTO), "Progressing", "InProgress"),
    ("too-large", TOO_LARGE, "Degraded", "Failed"),
    ("invalid", reported(None, rollout={"maxSurge": 0}), "Degraded", "Failed"),
]


@pytest.mark.parametrize(
    ("resource", "argo", "flux"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_service_is_as_healthy_as_it_says(resource: dict[str, Any], argo: str, flux: str) -> None:
    assert (argo_health(resource), flux_health(resource)) == (argo, flux)


def adapter(status: dict[str, Any] | None) -> dict[str, Any]:
    resource: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "LoRAAdapter",
        "metadata": {"name": "sql", "namespace": "models", "generation": 1},
        "spec": {"serviceRef": {"name": "chat"}, "source": {"uri": "hf://a/b"}},
    }
    return resource if status is None else {**resource, "status": status}


def ready(status: str, reason: str, **counts: int) -> dict[str, Any]:
    condition = {"type": "Ready", "status": status, "reason": reason, "message": "because"}
    return {"observedGeneration": 1, "conditions": [condition], **counts}


ADAPTERS: list[tuple[str, dict[str, Any], str, str]] = [
    ("unseen", adapter(None), "Progressing", "InProgress"),
    ("loading", adapter(ready("False", "Loading", desired=2)), "Progressing", "InProgress"),
    ("no-service-yet", adapter(ready("False", "ServiceNotFound")), "Progressing", "InProgress"),
    ("loaded", adapter(ready("True", "Loaded", desired=2, loaded=2)), "Healthy", "Current"),
    ("asleep", adapter(ready("False", "ScaledToZero")), "Healthy", "Current"),
    (
        "may-still-come",
        adapter(ready("False", "SourceUnreachable", desired=2, loaded=1, failed=1)),
        "Progressing",
        "InProgress",
    ),
    *(
        (reason, adapter(ready("False", reason, failed=1)), "Degraded", "Failed")
        for reason in sorted(PERMANENT_REASONS | REFUSALS)
    ),
]


@pytest.mark.parametrize(
    ("resource", "argo", "flux"),
    [case[1:] for case in ADAPTERS],
    ids=[case[0] for case in ADAPTERS],
)
def test_adapter_is_as_healthy_as_it_says(resource: dict[str, Any], argo: str, flux: str) -> None:
    assert (argo_health(resource), flux_health(resource)) == (argo, flux)


def test_status_that_the_operator_gives_a_new_adapter_is_understood() -> None:
    resource = adapter(None)
    world = AdapterWorld(
        name="chat",
        service=inference_service(engine={"lora": {}}),
        adapters=(resource,),
        pods=(),
        listings={},
        silences={},
        attempts={},
        busy={},
        now_s=0.0,
        now=NOW,
    )
    (report,) = plan_adapters(world).reports
    assert argo_health(adapter(dict(report.status))) == "Progressing"

"""The status of an InferenceService: what is true of it now, and what to do about it.

`Ready` is True only when a request would be answered. Reasons are stable words that programs may
rely on; messages are for people and may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from octavo_operator.labels import ANNOTATION_UPGRADE, selector_labels, selector_string
from octavo_operator.manifests.service import service_url
from octavo_operator.reconcile.conditions import (
    FEATURES_READY,
    MODEL_READY,
    PLACEMENT_READY,
    PROGRESSING,
    READY,
    UPGRADE_AVAILABLE,
    WORKLOAD_READY,
    Condition,
    merge_conditions,
)
from octavo_operator.reconcile.features import FeatureReport
from octavo_operator.reconcile.placing import Placed
from octavo_operator.reconcile.pod_problems import PodProblem
from octavo_operator.reconcile.stride import Stride
from octavo_operator.reconcile.workload import Workload
from octavo_operator.resources.inference_service import InferenceService


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the workload cannot be as the spec wants it: a stable reason and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the conditions are made of.

    placed: on how many GPUs.
    obstacle: the API or a namesake stands in the way; pods are left as they are.
    newer: what an upgrade would bring, None if nothing. image: the worker image in use.
    has_activator: calls are held while there is no pod.
    startup: how long the latest pod took to come up, None while that is not known.
    refusal: why the last change was rolled back, None when it was not. stride: how rollouts go.
    """

    service: InferenceService
    placed: Placed
    workload: Workload
    features: FeatureReport
    problem: PodProblem | None
    obstacle: Obstacle | None
    newer: str | None
    image: str
    refusal: str | None
    stride: Stride
    has_activator: bool
    startup: Mapping[str, Any] | None


def service_status(
    resource: Mapping[str, Any], findings: Findings, now: datetime
) -> dict[str, Any]:
    """The fields of `status` that the operator owns."""
    workload = findings.workload
    return {
        **_header(resource, workload),
        "selector": selector_string(selector_labels(findings.service.name)),
        "url": service_url(findings.service),
        "image": findings.image,
        **({"startup": findings.startup} if findings.startup is not None else {}),
        **_placement(resource, findings.placed),
        "conditions": merge_conditions(
            resource,
            [
                _model_ready(findings),
                _workload_ready(findings),
                _progressing(findings),
                _ready(findings),
                _upgrade_available(findings),
                _features_ready(findings),
                _placement_ready(findings.placed),
            ],
            now,
        ),
    }


def _placement(resource: Mapping[str, Any], placed: Placed) -> dict[str, Any]:
    """What is known; what is no longer true is taken away."""
    known = {"model": placed.model_status(), "placement": placed.placement_status()}
    before = resource.get("status") or {}
    return {name: known[name] for name in known if known[name] or before.get(name)}


def invalid_status(
    resource: Mapping[str, Any], workload: Workload, problem: str, now: datetime
) -> dict[str, Any]:
    """The status of a resource whose spec cannot be read; pods stay as the last valid spec left."""
    message = problem
    if workload.ready:
        message += f". The {workload.ready} pods of the last valid spec keep serving"
    conditions = [
        Condition(kind, "False", "InvalidSpec", message)
        for kind in (MODEL_READY, WORKLOAD_READY, PROGRESSING, READY)
    ]
    for kind in (UPGRADE_AVAILABLE, FEATURES_READY, PLACEMENT_READY):
        conditions.append(Condition(kind, "Unknown", "InvalidSpec", problem))
    return {
        **_header(resource, workload),
        "conditions": merge_conditions(resource, conditions, now),
    }


def is_same_status(current: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """Whether writing `wanted` would change nothing; fields the operator does not own are free."""
    current = current or {}
    return all(current.get(key) == value for key, value in wanted.items())


def _header(resource: Mapping[str, Any], workload: Workload) -> dict[str, Any]:
    return {
        "observedGeneration": resource["metadata"].get("generation", 0),
        "replicas": workload.total,
        "readyReplicas": workload.ready,
        # The other fields of it are written by others.
        "summary": {
            **((resource.get("status") or {}).get("summary") or {}),
            "replicas": f"{workload.ready}/{workload.wanted}",
        },
    }


def _model_ready(findings: Findings) -> Condition:
    workload, uri = findings.workload, findings.service.model.uri
    if findings.placed.is_blocked and not workload.ready:
        decision = findings.placed.decision
        return Condition(MODEL_READY, "False", decision.reason, decision.message)
    if workload.ready:
        return Condition(MODEL_READY, "True", "Loaded", f"{uri} is loaded")
    if workload.exists and workload.wanted == 0:
        return Condition(MODEL_READY, "Unknown", "ScaledToZero", "no pod is wanted")
    if findings.problem is not None:
        return Condition(MODEL_READY, "False", findings.problem.reason, f"no pod has loaded {uri}")
    return Condition(MODEL_READY, "False", "Loading", f"no pod has loaded {uri} yet")


def _workload_ready(findings: Findings) -> Condition:
    workload = findings.workload
    trouble = _trouble(findings)
    if trouble is not None:
        return Condition(WORKLOAD_READY, "False", trouble.reason, trouble.message)
    counted = f"{workload.ready} of {workload.wanted} pods are ready"
    if not workload.exists:
        return Condition(WORKLOAD_READY, "False", "Creating", "the pods are being created")
    if workload.wanted == 0:
        return Condition(WORKLOAD_READY, "True", "ScaledToZero", "no pod is wanted")
    if workload.ready >= workload.wanted:
        return Condition(WORKLOAD_READY, "True", "AllPodsReady", counted)
    return Condition(WORKLOAD_READY, "False", "PodsStarting", counted)


def _trouble(findings: Findings) -> Obstacle | None:
    if findings.placed.is_blocked:
        decision = findings.placed.decision
        return Obstacle(decision.reason, decision.message)
    if findings.obstacle is not None:
        return findings.obstacle
    if findings.workload.create_failure is not None:
        return Obstacle("PodsRefused", findings.workload.create_failure)
    if findings.problem is not None:
        note = findings.stride.note if findings.problem.is_lack_of_room else ""
        message = f"{findings.problem.message}; {note}" if note else findings.problem.message
        return Obstacle(findings.problem.reason, message)
    return None


def _progressing(findings: Findings) -> Condition:
    workload = findings.workload
    if findings.refusal is not None:
        return Condition(
            PROGRESSING,
            "False",
            "RolledBack",
            f"the last change did not come up, so the pods before it serve on: {findings.refusal}. "
            f"Change the spec, or set the annotation {ANNOTATION_UPGRADE} to a new value to try "
            f"again",
        )
    trouble = _trouble(findings)
    if findings.placed.is_waiting and trouble is not None:
        return Condition(PROGRESSING, "True", trouble.reason, trouble.message)
    is_replacing = findings.stride.memory is not None
    if trouble is not None and not is_replacing:
        return Condition(PROGRESSING, "False", trouble.reason, trouble.message)
    if workload.deadline_message is not None:
        return Condition(PROGRESSING, "False", "DeadlineExceeded", workload.deadline_message)
    if workload.is_rolled_out:
        return Condition(PROGRESSING, "False", "Complete", "all pods run the latest template")
    if workload.has_completed and not workload.has_old_pods:
        return _changing_number(workload)
    if findings.service.rollout.is_paused:
        return Condition(
            PROGRESSING, "False", "RolloutPaused", "set rollout.paused: false to go on"
        )
    return Condition(
        PROGRESSING,
        "True",
        "RollingOut",
        f"{workload.updated} of {workload.wanted} pods run the latest template, "
        f"{workload.available} pods are available, {workload.total} exist"
        + (f"; there is no spare room: {findings.stride.note}" if is_replacing else ""),
    )


def _changing_number(workload: Workload) -> Condition:
    """After a rollout, while pods are replaced that were lost, or their number changes."""
    said = f"the rollout is complete; {workload.available} of {workload.wanted} pods are available"
    surplus = workload.total - workload.wanted
    if surplus > 0:
        return Condition(PROGRESSING, "True", "PodsStopping", f"{said}, and {surplus} more stop")
    starting = f"{said}, and those that were lost, restarted or added are starting"
    return Condition(PROGRESSING, "True", "PodsStarting", starting)


def _ready(findings: Findings) -> Condition:
    workload = findings.workload
    if findings.obstacle is None and workload.ready:
        return Condition(
            READY,
            "True",
            "Serving",
            f"{workload.ready} of {workload.wanted} pods answer requests",
        )
    # What an autoscaler left at zero is no wish of the user's that a placement could stand behind.
    is_held_back = findings.placed.is_blocked and findings.service.replicas != 0
    is_free = findings.obstacle is None and not is_held_back
    if is_free and workload.exists and workload.wanted == 0:
        if findings.service.scaling is not None and findings.has_activator:
            message = "no pod runs, since nobody has called; the next request starts one"
            return Condition(READY, "False", "Sleeping", message)
        return Condition(READY, "False", "ScaledToZero", "no pod is wanted, so none answers")
    cause = _workload_ready(findings)
    return Condition(READY, "False", cause.reason, cause.message)


def _placement_ready(placed: Placed) -> Condition:
    decision = placed.decision
    return Condition(PLACEMENT_READY, decision.standing.value, decision.reason, decision.message)


def _upgrade_available(findings: Findings) -> Condition:
    if findings.newer is None:
        return Condition(UPGRADE_AVAILABLE, "False", "UpToDate", "there is nothing newer")
    return Condition(UPGRADE_AVAILABLE, "True", "NewerTemplate", findings.newer)


def _features_ready(findings: Findings) -> Condition:
    features = findings.features
    absent = features.missing
    said = "; ".join((*absent, *(lack.message for lack in features.lacks)))
    if absent:
        return Condition(FEATURES_READY, "False", "NotImplementedYet", said)
    if features.lacks:
        return Condition(FEATURES_READY, "False", features.lacks[0].reason, said)
    message = "; ".join(("all that the spec asks for is in effect", *features.notes))
    return Condition(FEATURES_READY, "True", "AllInEffect", message)

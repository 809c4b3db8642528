"""A service without pods says so, and comes back with the first replica."""

from __future__ import annotations

from cluster import wait_for
from services import Stage, condition

NAME = "zero"


def test_service_goes_to_zero_and_comes_back(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME, replicas=0))
    asleep = stage.wait_condition(NAME, "Ready", "False", "ScaledToZero")
    assert condition(asleep, "WorkloadReady")["status"] == "True"
    assert stage.pods(NAME) == []

    stage.cluster.merge(
        "inferenceservices", stage.namespace, NAME, {"spec": {"replicas": 1}}, "scale"
    )
    stage.wait_ready(NAME)
    (pod,) = stage.ready_pods(NAME)
    assert stage.complete(pod, NAME).status == 200

    stage.cluster.merge(
        "inferenceservices", stage.namespace, NAME, {"spec": {"replicas": 0}}, "scale"
    )
    stage.wait_condition(NAME, "Ready", "False", "ScaledToZero")
    wait_for("no pod is left", lambda: stage.pods(NAME), lambda pods: not pods)

"""A service without pods says so, and comes back with the first replica."""

from __future__ import annotations

import httpx
import pytest

from cluster import wait_for
from services import Stage, condition, is_reachable

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


def test_first_call_wakes_a_service_that_sleeps(stage: Stage) -> None:
    """`scaling.minReplicas: 0`: the call is held by the activator, and answered by the pod."""
    scaling = {"minReplicas": 0, "maxReplicas": 1, "cooldown": "15s"}
    stage.apply(stage.manifest(NAME, replicas=None, scaling=scaling))
    stage.wait_ready(NAME)
    stage.wait_condition(NAME, "Ready", "False", "Sleeping")
    wait_for("no pod is left", lambda: stage.pods(NAME), lambda pods: not pods)
    slices = wait_for(
        "callers are sent to the activator",
        lambda: stage.cluster.list_all(
            "endpointslices", stage.namespace, {"kubernetes.io/service-name": NAME}
        ),
        lambda found: any(item["metadata"]["name"].endswith("-activator") for item in found),
    )
    (activator,) = (item for item in slices if item["metadata"]["name"].endswith("-activator"))
    host, port = activator["endpoints"][0]["addresses"][0], activator["ports"][0]["port"]
    if not is_reachable(host, port):
        pytest.skip(f"the activator's pod IP {host} cannot be reached from here")

    body = {"model": NAME, "prompt": "Hello", "max_tokens": 4}
    url = f"http://{host}:{port}/v1/completions"
    response = httpx.post(url, json=body, timeout=300)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] >= 1
    assert len(stage.ready_pods(NAME)) == 1

"""Replicas follow the scale subresource, which is what kubectl scale and autoscalers use."""

from __future__ import annotations

from typing import Any

from cluster import wait_for
from services import Stage, uids
from traffic import Traffic

NAME = "scale"


def _scale(stage: Stage, replicas: int) -> dict[str, Any]:
    return stage.cluster.merge(
        "inferenceservices", stage.namespace, NAME, {"spec": {"replicas": replicas}}, "scale"
    )


def test_scale_subresource_scales_without_failing_a_request(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    before = uids(stage.pods(NAME))
    with Traffic(stage, NAME) as traffic:
        _scale(stage, 2)
        wait_for(
            "two pods are ready", lambda: stage.ready_pods(NAME), lambda pods: len(pods) == 2, 300
        )
        stage.wait_rolled_out(NAME)
        assert before < uids(stage.pods(NAME))
        traffic.wait_answers(5)
        _scale(stage, 1)
        stage.wait_rolled_out(NAME)
        traffic.wait_answers(5)
    assert traffic.failures == []
    assert len(stage.pods(NAME)) == 1


def test_scale_subresource_tells_an_autoscaler_what_it_needs(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    scale = stage.cluster.get("inferenceservices", stage.namespace, NAME, "scale")
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (1, 1)
    selector = dict(term.split("=") for term in scale["status"]["selector"].split(","))
    assert uids(stage.cluster.list_all("pods", stage.namespace, selector)) == uids(stage.pods(NAME))

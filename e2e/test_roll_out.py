"""A change of the spec reaches the pods, no request fails meanwhile, and it is told once."""

from __future__ import annotations

from typing import Any

from cluster import wait_for
from services import Stage, uids
from traffic import Traffic

NAME = "rollout"


def test_rolling_update_under_load_fails_no_request(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME, replicas=2))
    stage.wait_rolled_out(NAME)
    before = uids(stage.ready_pods(NAME))
    with Traffic(stage, NAME) as traffic:
        traffic.wait_answers(5)
        changed = stage.manifest(NAME, replicas=2)
        changed["spec"]["engine"]["maxNumSeqs"] = 8
        stage.apply(changed)
        stage.wait_rolled_out(NAME)
        traffic.wait_answers(5)
    assert traffic.failures == []
    after = stage.ready_pods(NAME)
    assert len(after) == 2
    assert not uids(after) & before
    assert "--max-num-seqs" in after[0]["spec"]["containers"][0]["command"]


def test_paused_rollout_waits(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    before = uids(stage.pods(NAME))
    changed = stage.manifest(NAME, rollout={"paused": True})
    changed["spec"]["engine"]["maxNumSeqs"] = 8
    stage.apply(changed)
    stage.wait_condition(NAME, "Progressing", "False", "RolloutPaused")
    assert uids(stage.pods(NAME)) == before
    changed["spec"]["rollout"]["paused"] = False
    stage.apply(changed)
    stage.wait_rolled_out(NAME)
    assert not uids(stage.pods(NAME)) & before


def _patch_deployment(stage: Stage, patch: dict[str, Any]) -> None:
    """Until its controller has seen it."""
    live = stage.cluster.merge("deployments", stage.namespace, NAME, patch)
    wait_for(
        "the Deployment's controller has seen it",
        lambda: stage.cluster.get("deployments", stage.namespace, NAME)["status"],
        lambda status: status["observedGeneration"] >= live["metadata"]["generation"],
    )


def _rollouts_told(stage: Stage) -> int:
    uid = stage.service(NAME)["metadata"]["uid"]
    events = stage.cluster.list_all("events", stage.namespace)
    told = [event["reason"] for event in events if event["involvedObject"].get("uid") == uid]
    return told.count("RollingOut")


def test_change_that_no_pod_hears_of_is_not_told_as_a_rollout(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    before = uids(stage.pods(NAME))
    stage.apply(stage.manifest(NAME, rollout={"drainSeconds": 30, "maxSurge": 2}))
    wait_for(
        "the Deployment has the new strategy",
        lambda: stage.cluster.get("deployments", stage.namespace, NAME)["spec"]["strategy"],
        lambda strategy: strategy["rollingUpdate"]["maxSurge"] == 2,
    )
    stage.wait_rolled_out(NAME)
    _patch_deployment(stage, {"metadata": {"annotations": {"example.org/team": "chat"}}})
    stage.wait_rolled_out(NAME)
    assert _rollouts_told(stage) == 1
    assert uids(stage.pods(NAME)) == before

"""A change of the spec reaches the pods, and no request fails meanwhile."""

from __future__ import annotations

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

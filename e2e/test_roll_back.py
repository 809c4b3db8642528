"""A bad revision is seen, costs nothing, and is undone by applying the good one again."""

from __future__ import annotations

from services import Stage, condition, uids
from traffic import Traffic

NAME = "rollback"


def _last_words(stage: Stage) -> list[str]:
    """What kubelet kept of the ended workers' output, where it keeps any: one line each."""
    words = []
    for pod in stage.pods(NAME):
        for container in pod["status"].get("containerStatuses") or ():
            ended = (container.get("lastState") or {}).get("terminated") or {}
            words += (ended.get("message") or "").strip().splitlines()[-1:]
    return words


def test_bad_revision_leaves_the_old_pods_and_can_be_undone(stage: Stage) -> None:
    good = stage.manifest(NAME)
    stage.apply(good)
    stage.wait_rolled_out(NAME)
    before = uids(stage.ready_pods(NAME))

    with Traffic(stage, NAME, num_clients=1) as traffic:
        traffic.wait_answers(3)
        bad = stage.manifest(NAME)
        bad["spec"]["engine"]["args"].append("--no-such-flag")
        stage.apply(bad)
        broken = stage.wait_condition(NAME, "Progressing", "False", "CrashLooping")
        message = condition(broken, "Progressing")["message"]
        assert "exit code 2" in message
        assert all(line in message for line in _last_words(stage))
        # Requests are still answered, so the service is Ready, and says how many answer.
        assert condition(broken, "Ready")["status"] == "True"
        assert before <= uids(stage.ready_pods(NAME))

        stage.apply(good)
        stage.wait_rolled_out(NAME)
        traffic.wait_answers(3)
    assert traffic.failures == []
    assert uids(stage.pods(NAME)) == before


def test_overlay_with_a_misspelt_field_is_told_and_costs_nothing(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    before = uids(stage.ready_pods(NAME))
    stage.apply(stage.manifest(NAME, template={"spec": {"nodeSelectr": {"a": "b"}}}))
    refused = stage.wait_condition(NAME, "WorkloadReady", "False", "ApplyRejected")
    assert "nodeSelectr" in condition(refused, "WorkloadReady")["message"]
    assert uids(stage.ready_pods(NAME)) == before
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    assert uids(stage.pods(NAME)) == before


def test_image_that_cannot_be_pulled_is_named(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    before = uids(stage.ready_pods(NAME))
    stage.apply(stage.manifest(NAME, image="registry.invalid/no/such:image"))
    broken = stage.wait_condition(NAME, "Progressing", "False", "ImagePullFailed")
    assert "registry.invalid/no/such:image" in condition(broken, "Progressing")["message"]
    assert before <= uids(stage.ready_pods(NAME))
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    assert uids(stage.pods(NAME)) == before

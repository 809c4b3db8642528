"""A new operator restarts no model; it says what is newer, and brings it when asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster import wait_for
from release import NAME as OPERATOR
from release import Release
from services import Stage, condition, uids

NAME = "upgrade"
ANNOTATION = "serving.octavo.dev/upgrade"


@pytest.fixture
def restored(release: Release) -> Iterator[Release]:
    """The release, which is put back to what it was."""
    yield release
    release.install()


def test_upgrade_of_the_operator_restarts_no_pod(stage: Stage, restored: Release) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    before = uids(stage.pods(NAME))
    old_operator = uids(stage.cluster.list_all("pods", restored.namespace))

    newer = f"{restored.values['workerImage']['tag'] or '0.1.0'}-newer"
    restored.changed({"workerImage": {"tag": newer, "digest": ""}}).install()

    told = stage.wait_condition(NAME, "UpgradeAvailable", "True", "NewerTemplate")
    assert newer in condition(told, "UpgradeAvailable")["message"]
    wait_for(
        "the operators of before are gone",
        lambda: uids(stage.cluster.list_all("pods", restored.namespace)) & old_operator,
        lambda left: not left,
    )
    assert uids(stage.ready_pods(NAME)) == before
    assert condition(told, "Ready")["status"] == "True"


def test_upgrade_is_taken_when_asked_for(stage: Stage, restored: Release) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    newer = f"{restored.values['workerImage']['tag'] or '0.1.0'}-newer"
    restored.changed({"workerImage": {"tag": newer, "digest": ""}}).install()
    stage.wait_condition(NAME, "UpgradeAvailable", "True")
    stage.cluster.merge(
        "inferenceservices", stage.namespace, NAME, {"metadata": {"annotations": {ANNOTATION: "1"}}}
    )
    wait_for(
        "the Deployment has the newer image",
        lambda: stage.cluster.get("deployments", stage.namespace, NAME),
        lambda live: live["spec"]["template"]["spec"]["containers"][0]["image"].endswith(newer),
    )
    stage.wait_condition(NAME, "UpgradeAvailable", "False", "UpToDate")
    stage.wait_rolled_out(NAME)
    deployment = stage.cluster.get("deployments", stage.namespace, NAME)
    # Templates so far; of generations there are more, as annotations count.
    assert deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"


def test_operator_killed_in_the_middle_goes_on(stage: Stage, release: Release) -> None:
    stage.apply(stage.manifest(NAME, replicas=2))
    wait_for(
        "the Deployment is there",
        lambda: stage.cluster.find("deployments", stage.namespace, NAME),
        lambda found: found is not None,
    )
    for pod in stage.cluster.list_all("pods", release.namespace):
        if OPERATOR in pod["metadata"]["name"]:
            stage.cluster.delete(
                "pods", release.namespace, pod["metadata"]["name"], gracePeriodSeconds=0
            )
    stage.wait_rolled_out(NAME)
    assert len(stage.ready_pods(NAME)) == 2

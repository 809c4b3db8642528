"""A rollout where no accelerator is spare: it is said what lacks, and there is a way through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster import Cluster, wait_for
from services import Stage, condition, uids

NAME = "nospare"
DEVICE = "octavo.dev/e2e-device"


@pytest.fixture
def one_device(cluster: Cluster) -> Iterator[str]:
    """An extended resource of which one node has one: all a scheduler knows of a GPU."""
    node = next(node for node in cluster.list_all("nodes", None) if not node["spec"].get("taints"))
    name = node["metadata"]["name"]
    amounts = {"capacity": {DEVICE: "1"}, "allocatable": {DEVICE: "1"}}
    cluster.merge("nodes", None, name, {"status": amounts}, "status")
    yield DEVICE
    gone = {"capacity": {DEVICE: None}, "allocatable": {DEVICE: None}}
    cluster.merge("nodes", None, name, {"status": gone}, "status")


def test_rollout_without_a_spare_device_says_so_and_finds_its_way(
    stage: Stage, one_device: str
) -> None:
    accelerator = {"resource": one_device}
    stage.apply(stage.manifest(NAME, accelerator=accelerator))
    stage.wait_rolled_out(NAME)
    before = uids(stage.ready_pods(NAME))

    changed = stage.manifest(NAME, accelerator=accelerator)
    changed["spec"]["engine"]["maxNumSeqs"] = 8
    stage.apply(changed)
    stage.wait_condition(NAME, "WorkloadReady", "False", "InsufficientGPU")
    # The pod without a place may be seen before the Deployment tells that pods are being replaced.
    stuck = wait_for(
        "the way through is told",
        lambda: stage.service(NAME),
        lambda service: "maxUnavailable: 1" in condition(service, "WorkloadReady")["message"],
    )
    assert f"1 {one_device}" in condition(stuck, "WorkloadReady")["message"]
    assert condition(stuck, "Ready")["status"] == "True"
    assert uids(stage.ready_pods(NAME)) == before

    changed["spec"]["rollout"] |= {"maxSurge": 0, "maxUnavailable": 1}
    stage.apply(changed)
    stage.wait_rolled_out(NAME)
    wait_for(
        "only the new pod is there",
        lambda: stage.ready_pods(NAME),
        lambda pods: len(pods) == 1 and not uids(pods) & before,
    )

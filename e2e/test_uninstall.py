"""The operator goes; models go on, and nothing waits for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster import wait_for
from release import Release
from services import API_VERSION, Stage, uids

NAME = "uninstall"
FINALIZER = "serving.octavo.dev/finalizer"


@pytest.fixture
def leaving(release: Release) -> Iterator[Release]:
    """The release with CRDs that outlive it, as a user has it; put back afterwards."""
    kept = release.changed({"crds": {"keep": True}})
    kept.install()
    yield kept
    release.install()


def test_uninstall_leaves_models_running_and_nothing_held(stage: Stage, leaving: Release) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    before = uids(stage.ready_pods(NAME))
    adapter = {
        "apiVersion": API_VERSION,
        "kind": "LoRAAdapter",
        "metadata": {"name": NAME, "namespace": stage.namespace, "finalizers": [FINALIZER]},
        "spec": {
            "serviceRef": {"name": NAME},
            "servedName": f"{NAME}-lora",
            "source": {"uri": "hf://org/adapter"},
        },
    }
    stage.cluster.create("loraadapters", stage.namespace, adapter)
    leaving.uninstall()

    assert stage.cluster.list_all("pods", leaving.namespace) == []
    held = stage.cluster.get("loraadapters", stage.namespace, NAME)
    assert held["metadata"].get("finalizers", []) == []
    assert uids(stage.ready_pods(NAME)) == before
    (pod,) = stage.ready_pods(NAME)
    assert stage.complete(pod, NAME).status == 200

    stage.cluster.delete("loraadapters", stage.namespace, NAME)
    stage.cluster.delete("inferenceservices", stage.namespace, NAME)
    stage.wait_gone("loraadapters", NAME)
    stage.wait_gone("inferenceservices", NAME)
    wait_for("no pod is left", lambda: stage.pods(NAME), lambda pods: not pods)

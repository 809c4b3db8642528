"""Deleting a service takes everything with it, whether the operator is there or not."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from adapters import MOUNT, adapter_files, config_map, pod_overlay
from cluster import Cluster, wait_for
from environment import Environment
from release import NAME as OPERATOR
from release import Release
from services import API_VERSION, START_S, Stage, condition

NAME = "delete"
CHILDREN = ("deployments", "services", "serviceaccounts", "poddisruptionbudgets", "networkpolicies")


def test_everything_goes_with_the_resource(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_ready(NAME)
    for plural in CHILDREN:
        owners = stage.cluster.get(plural, stage.namespace, NAME)["metadata"]["ownerReferences"]
        assert [owner["kind"] for owner in owners] == ["InferenceService"]
    stage.cluster.delete("inferenceservices", stage.namespace, NAME)
    for plural in ("inferenceservices", *CHILDREN):
        stage.wait_gone(plural, NAME)
    wait_for("no pod is left", lambda: stage.pods(NAME), lambda pods: not pods)


def test_deletion_does_not_wait_for_an_operator_that_is_gone(
    stage: Stage, release: Release
) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_ready(NAME)
    system = release.namespace
    replicas = stage.cluster.get("deployments", system, OPERATOR)["spec"]["replicas"]
    stage.cluster.merge("deployments", system, OPERATOR, {"spec": {"replicas": 0}})
    try:
        wait_for(
            "the operator is gone",
            lambda: stage.cluster.list_all("pods", system),
            lambda pods: not pods,
        )
        stage.cluster.delete("inferenceservices", stage.namespace, NAME)
        for plural in ("inferenceservices", *CHILDREN):
            stage.wait_gone(plural, NAME)
    finally:
        stage.cluster.merge("deployments", system, OPERATOR, {"spec": {"replicas": replicas}})
        wait_for(
            "the operator is back",
            lambda: stage.cluster.get("deployments", system, OPERATOR),
            lambda live: live["status"].get("readyReplicas", 0) >= 1,
            180,
        )


@pytest.fixture
def elsewhere(
    cluster: Cluster, environment: Environment, stage: Stage, release: Release
) -> Iterator[Stage]:
    """A namespace of its own that the operator looks after."""
    name = f"octavo-e2e-gone-{uuid.uuid4().hex[:6]}"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    cluster.create("namespaces", None, namespace)
    if not environment.is_cluster_wide:
        release.changed({"namespaces": [stage.namespace, name]}).install()
    yield Stage(cluster, environment, name)
    cluster.delete("namespaces", None, name)
    if not environment.is_cluster_wide:
        release.install()


def test_namespace_with_a_service_and_its_adapter_can_be_deleted(elsewhere: Stage) -> None:
    """The operator's rights in a named namespace go with it, in whatever order."""
    shape = elsewhere.environment.value_shape
    if shape is None:
        pytest.skip("OCTAVO_E2E_VALUE_SHAPE does not tell what adapters of the model look like")
    files = config_map(NAME, elsewhere.namespace, {"sql": adapter_files(shape, 1)})
    elsewhere.cluster.apply("configmaps", files)
    manifest = elsewhere.manifest(NAME, template=pod_overlay(files))
    manifest["spec"]["engine"]["lora"] = {"maxAdapters": 2, "maxRank": 2}
    elsewhere.apply(manifest)
    adapter = {
        "apiVersion": API_VERSION,
        "kind": "LoRAAdapter",
        "metadata": {"name": NAME, "namespace": elsewhere.namespace},
        "spec": {
            "serviceRef": {"name": NAME},
            "servedName": "delete-sql",
            "source": {"uri": f"file://{MOUNT}/sql"},
        },
    }
    elsewhere.cluster.apply("loraadapters", adapter)
    wait_for(
        "the adapter is loaded",
        lambda: elsewhere.cluster.get("loraadapters", elsewhere.namespace, NAME),
        lambda live: (condition(live, "Ready") or {}).get("status") == "True",
        START_S,
    )
    elsewhere.cluster.delete("namespaces", None, elsewhere.namespace)
    wait_for(
        "the namespace is gone",
        lambda: elsewhere.cluster.find("namespaces", None, elsewhere.namespace),
        lambda found: found is None,
        180,
    )

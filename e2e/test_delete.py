"""Deleting a service takes everything with it, whether the operator is there or not."""

from __future__ import annotations

import uuid

from cluster import Cluster, wait_for
from release import NAME as OPERATOR
from release import Release
from services import Stage

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


def test_namespace_with_a_service_can_be_deleted(cluster: Cluster, stage: Stage) -> None:
    name = f"octavo-e2e-gone-{uuid.uuid4().hex[:6]}"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    cluster.create("namespaces", None, namespace)
    manifest = stage.manifest(NAME)
    manifest["metadata"]["namespace"] = name
    cluster.apply("inferenceservices", manifest)
    cluster.delete("namespaces", None, name)
    wait_for(
        "the namespace is gone",
        lambda: cluster.find("namespaces", None, name),
        lambda found: found is None,
    )

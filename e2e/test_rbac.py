"""The operator has exactly the rights of the chart; every other story ran with them and no more."""

from __future__ import annotations

import pytest

from cluster import Cluster
from release import NAME as OPERATOR
from release import Release
from services import Stage

NAME = "rbac"
ALLOWED = [
    ("serving.octavo.dev", "inferenceservices", "watch"),
    ("serving.octavo.dev", "inferenceservices/status", "patch"),
    ("serving.octavo.dev", "loraadapters", "patch"),
    ("apps", "deployments", "patch"),
    ("", "services", "patch"),
    ("", "pods", "list"),
    ("networking.k8s.io", "networkpolicies", "patch"),
    ("batch", "jobs", "create"),
    ("", "configmaps", "patch"),
    ("monitoring.coreos.com", "prometheusrules", "patch"),
]
FORBIDDEN = [
    ("", "secrets", "get"),
    ("", "secrets", "list"),
    ("", "configmaps", "delete"),
    ("", "pods", "get"),
    ("", "pods/status", "patch"),
    ("", "pods", "create"),
    ("", "nodes", "watch"),
    ("", "nodes", "patch"),
    ("", "pods/exec", "create"),
    ("", "pods/portforward", "create"),
    ("", "serviceaccounts/token", "create"),
    ("serving.octavo.dev", "inferenceservices", "patch"),
    ("serving.octavo.dev", "inferenceservices", "delete"),
    ("serving.octavo.dev", "loraadapters", "delete"),
    ("rbac.authorization.k8s.io", "roles", "create"),
    ("batch", "cronjobs", "create"),
]


def _may(
    cluster: Cluster, release: Release, namespace: str, group: str, resource: str, verb: str
) -> bool:
    main, _, subresource = resource.partition("/")
    attributes = {
        "namespace": namespace,
        "group": group,
        "resource": main,
        "subresource": subresource,
        "verb": verb,
    }
    user = f"system:serviceaccount:{release.namespace}:{OPERATOR}"
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user,
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "resourceAttributes": attributes,
        },
    }
    answer = cluster.create("subjectaccessreviews", None, review)
    return bool(answer["status"]["allowed"])


@pytest.mark.parametrize(("group", "resource", "verb"), ALLOWED)
def test_operator_may(
    cluster: Cluster, stage: Stage, release: Release, group: str, resource: str, verb: str
) -> None:
    assert _may(cluster, release, stage.namespace, group, resource, verb)


@pytest.mark.parametrize(("group", "resource", "verb"), FORBIDDEN)
def test_operator_may_not(
    cluster: Cluster, stage: Stage, release: Release, group: str, resource: str, verb: str
) -> None:
    assert not _may(cluster, release, stage.namespace, group, resource, verb)


def test_namespaced_operator_has_no_rights_elsewhere(
    cluster: Cluster, stage: Stage, release: Release
) -> None:
    if stage.environment.is_cluster_wide:
        pytest.skip("the operator is installed for the whole cluster (OCTAVO_E2E_MODE=cluster)")
    for group, resource, verb in ALLOWED:
        assert not _may(cluster, release, "default", group, resource, verb)
    assert not [
        role
        for role in cluster.list_all("clusterroles", None)
        if role["metadata"]["name"].startswith(OPERATOR)
    ]


def test_pods_of_both_programs_are_admitted_under_the_restricted_standard(
    cluster: Cluster, stage: Stage, release: Release
) -> None:
    """Both namespaces enforce it, so a pod that did not keep it would never have been made."""
    stage.apply(stage.manifest(NAME))
    stage.wait_ready(NAME)
    for namespace in (stage.namespace, release.namespace):
        labels = cluster.get("namespaces", None, namespace)["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
        assert cluster.list_all("pods", namespace)


def test_worker_has_no_token(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_ready(NAME)
    (pod,) = stage.pods(NAME)
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert not [volume for volume in pod["spec"]["volumes"] if "projected" in volume]

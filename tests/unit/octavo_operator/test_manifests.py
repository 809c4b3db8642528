"""Whole manifests: what is rendered, byte for byte; how overlays merge; what is never allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import validate

from inference_services import inference_service
from octavo_operator.errors import ResourceError
from octavo_operator.labels import ANNOTATION_APPLIED_HASH, ANNOTATION_POD_TEMPLATE
from octavo_operator.manifests.kinds import OPTIONAL_KINDS, kind_of
from octavo_operator.manifests.network_policy import network_policy
from octavo_operator.manifests.overlay import merge_overlay
from octavo_operator.manifests.pod_monitor import pod_monitor
from octavo_operator.manifests.pod_template import pod_template
from octavo_operator.manifests.worker_command import NO_ADMIN_KEY
from octavo_operator.reconcile.rendering import render_service
from octavo_operator.resources.inference_service import parse_inference_service
from octavo_operator.worker_peers import NAMESPACE_ONLY, WorkerPeers

GOLDEN = Path(__file__).with_name("golden")
CASES = ("cpu", "full", "volumes")


def rendered(case: str) -> list[Any]:
    service = yaml.safe_load((GOLDEN / f"{case}.service.yaml").read_text())
    return [json.loads(json.dumps(item)) for item in render_service(service, "worker:1")]


def without_template_memory(manifest: dict[str, Any]) -> dict[str, Any]:
    """The annotation repeats the template in one long line; the hash covers both."""
    annotations = manifest["metadata"]["annotations"]
    memory = annotations.pop(ANNOTATION_POD_TEMPLATE, None)
    if memory is not None:
        assert json.loads(memory) == manifest["spec"]["template"]
    return manifest


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_exactly_these(case: str) -> None:
    expected = list(yaml.safe_load_all((GOLDEN / f"{case}.manifests.yaml").read_text()))
    assert [without_template_memory(manifest) for manifest in rendered(case)] == expected


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_valid_kubernetes_objects(case: str) -> None:
    for manifest in rendered(case):
        if kind_of(manifest) not in OPTIONAL_KINDS:
            validate(manifest, "1.37", strict=True)


def test_the_look_at_a_model_gets_no_more_than_it_needs() -> None:
    """No GPU, no port, no key of a client, and the restricted standard as for workers."""
    (job,) = (item for item in rendered("full") if item["kind"] == "Job")
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert list(container["resources"]["limits"]) == ["memory"]
    assert not {"ports", "livenessProbe", "readinessProbe", "startupProbe"} & container.keys()
    names = {volume["name"] for volume in spec["volumes"]}
    assert names == {"tmp", "model-cache"} == {m["name"] for m in container["volumeMounts"]}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
    }
    assert spec["automountServiceAccountToken"] is False
    assert "resourceClaims" not in spec


@pytest.mark.parametrize("case", CASES)
def test_pods_meet_the_restricted_standard(case: str) -> None:
    """The rules of the restricted Pod Security Standard that apply to what we render."""
    pod = next(item for item in rendered(case) if item["kind"] == "Deployment")["spec"]["template"]
    spec = pod["spec"]
    worker = spec["containers"][0]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert worker["securityContext"]["allowPrivilegeEscalation"] is False
    assert worker["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert worker["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["automountServiceAccountToken"] is False
    allowed = {"emptyDir", "persistentVolumeClaim", "secret", "image", "configMap"}
    for volume in spec["volumes"]:
        assert volume.keys() - {"name"} <= allowed


def test_grace_of_a_pod_covers_all_that_its_worker_may_take_to_end() -> None:
    pod = next(item for item in rendered("full") if item["kind"] == "Deployment")["spec"][
        "template"
    ]
    command = pod["spec"]["containers"][0]["command"]
    delay_s, drain_s = (
        int(command[command.index(flag) + 1]) for flag in ("--shutdown-delay", "--shutdown-timeout")
    )
    assert drain_s == 120
    assert pod["spec"]["terminationGracePeriodSeconds"] > delay_s + drain_s


def test_network_policy_lets_in_whom_the_installer_names() -> None:
    service = parse_inference_service(inference_service())
    gateway = {"namespaceSelector": {"matchLabels": {"team": "web"}}}
    prometheus = {"podSelector": {"matchLabels": {"app": "prometheus"}}}
    policy = network_policy(service, WorkerPeers(api=(gateway,), admin=(prometheus,)))
    api, admin = policy["spec"]["ingress"]
    assert api["from"] == [{"podSelector": {}}, gateway]
    assert api["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert admin["from"] == [prometheus]
    assert admin["ports"] == [{"port": "admin", "protocol": "TCP"}]


def test_admin_port_is_closed_where_nobody_is_named() -> None:
    """A rule without peers would let everybody in."""
    (rule,) = network_policy(parse_inference_service(inference_service()), NAMESPACE_ONLY)["spec"][
        "ingress"
    ]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]


def test_metrics_of_pods_with_a_single_port_can_still_be_read() -> None:
    service = parse_inference_service(inference_service())
    prometheus = {"podSelector": {"matchLabels": {"app": "prometheus"}}}
    policy = network_policy(service, WorkerPeers(admin=(prometheus,)), has_single_port=True)
    assert [port["port"] for port in policy["spec"]["ingress"][1]["ports"]] == ["admin", "http"]
    new, old = pod_monitor(service, has_single_port=True)["spec"]["podMetricsEndpoints"]
    assert (new["port"], old["port"]) == ("admin", "http")
    (rule,) = old["relabelings"]
    assert rule["action"] == "drop"
    assert rule["sourceLabels"] == [
        "__meta_kubernetes_pod_labelpresent_serving_octavo_dev_admin_port"
    ]


def test_metrics_stay_on_the_port_where_an_endpoint_picker_looks() -> None:
    for routing, has_metrics in (({}, False), ({"inferencePool": True}, True)):
        service = parse_inference_service(inference_service(routing=routing))
        template = pod_template(service, "worker:1", NO_ADMIN_KEY)
        command = template["spec"]["containers"][0]["command"]
        assert ("--metrics-on-admin-port" not in command) == has_metrics


def test_pods_of_a_replica_that_spans_nodes_reach_each_other_on_every_port() -> None:
    spec = inference_service(parallelism={"tensor": 8, "nodes": 2, "pipeline": 2})
    policy = network_policy(parse_inference_service(spec), NAMESPACE_ONLY)
    own = {"podSelector": policy["spec"]["podSelector"]}
    assert policy["spec"]["ingress"][1] == {"from": [own]}


def test_rendering_is_repeatable_and_the_hash_follows_the_content() -> None:
    first = {item["kind"]: item for item in rendered("full")}
    assert first == {item["kind"]: item for item in rendered("full")}
    service = yaml.safe_load((GOLDEN / "full.service.yaml").read_text())
    service["spec"]["replicas"] = 3
    second = {item["kind"]: item for item in render_service(service, "worker:1")}

    def digest(manifests: dict[str, Any], kind: str) -> str:
        return str(manifests[kind]["metadata"]["annotations"][ANNOTATION_APPLIED_HASH])

    assert digest(first, "Deployment") != digest(second, "Deployment")
    assert digest(first, "Service") == digest(second, "Service")


@pytest.mark.parametrize(
    ("base", "overlay", "merged"),
    [
        ({"a": 1, "b": 2}, {"a": 3}, {"a": 3, "b": 2}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 2}}),
        ({"a": {"b": 1}}, {"a": {"$patch": "replace", "c": 2}}, {"a": {"c": 2}}),
        ({"command": ["a", "b"]}, {"command": ["c"]}, {"command": ["c"]}),
        (
            {"env": [{"name": "A", "value": "1"}]},
            {"env": [{"name": "B"}, {"name": "A", "value": "2"}]},
            {"env": [{"name": "A", "value": "2"}, {"name": "B"}]},
        ),
        (
            {"env": [{"name": "A"}, {"name": "B"}]},
            {"env": [{"name": "A", "$patch": "delete"}]},
            {"env": [{"name": "B"}]},
        ),
        (
            {"env": [{"name": "A"}]},
            {"env": [{"$patch": "replace"}, {"name": "B"}]},
            {"env": [{"name": "B"}]},
        ),
        (
            {"volumeMounts": [{"mountPath": "/a", "name": "x"}]},
            {"volumeMounts": [{"mountPath": "/a", "readOnly": True}]},
            {"volumeMounts": [{"mountPath": "/a", "name": "x", "readOnly": True}]},
        ),
        (
            {"ports": [{"containerPort": 80, "protocol": "TCP"}]},
            {
                "ports": [
                    {"containerPort": 80, "name": "web"},
                    {"containerPort": 80, "protocol": "UDP"},
                ]
            },
            {
                "ports": [
                    {"containerPort": 80, "protocol": "TCP", "name": "web"},
                    {"containerPort": 80, "protocol": "UDP"},
                ]
            },
        ),
        ({"tolerations": [{"key": "a"}]}, {"tolerations": []}, {"tolerations": []}),
    ],
    ids=[
        "value",
        "null",
        "nested",
        "replace",
        "atomic",
        "keyed",
        "delete",
        "replace-list",
        "mount-path",
        "ports",
        "empty-list",
    ],
)
def test_overlay(base: dict[str, Any], overlay: dict[str, Any], merged: dict[str, Any]) -> None:
    before = json.dumps(base)
    assert merge_overlay(base, overlay, "spec.template") == merged
    assert json.dumps(base) == before


def worker_alone(**fields: Any) -> dict[str, Any]:
    """An overlay that puts a container of the user's in the place of ours."""
    return {"spec": {"containers": [{"$patch": "replace"}, {"name": "worker", **fields}]}}


@pytest.mark.parametrize(
    ("template", "field"),
    [
        ({"spec": []}, "spec.template.spec"),
        ({"spec": "x"}, "spec.template.spec"),
        ({"spec": {"containers": {}}}, "spec.template.spec.containers"),
        ({"spec": {"containers": [{"image": "a"}]}}, "spec.template.spec.containers[0]"),
        ({"spec": {"containers": ["a"]}}, "spec.template.spec.containers[0]"),
        ({"spec": {"$patch": "merge"}}, "spec.template.spec.$patch"),
        ({"metadata": None}, "spec.template.metadata"),
        ({"spec": None}, "spec.template.spec"),
        ({"spec": {"$patch": "replace", "containers": 1}}, "spec.template.spec.containers"),
        (worker_alone(), "spec.template.spec.containers[worker].image"),
        (worker_alone(image="a"), "spec.template.spec.containers[worker].command"),
        (
            worker_alone(image="a", command="octavo"),
            "spec.template.spec.containers[worker].command",
        ),
        (
            worker_alone(image="a", command=["octavo"], volumeMounts=[{"mountPath": "/x"}]),
            "spec.template.spec.containers[worker].volumeMounts[0]",
        ),
        (
            {
                "spec": {
                    "containers": [{"$patch": "replace"}, {"name": "worker"}, {"name": "worker"}]
                }
            },
            "spec.template.spec.containers",
        ),
        (
            {"spec": {"volumes": [{"$patch": "replace"}, {"emptyDir": {}}]}},
            "spec.template.spec.volumes[0]",
        ),
        (
            {"spec": {"containers": [{"name": "worker", "$patch": "delete"}]}},
            "spec.template.spec.containers",
        ),
        (
            {"metadata": {"labels": {"serving.octavo.dev/service": "x"}}},
            "spec.template.metadata.labels[serving.octavo.dev/service]",
        ),
    ],
)
def test_overlay_that_cannot_be_merged_is_refused(template: dict[str, Any], field: str) -> None:
    service = parse_inference_service(inference_service(template=template))
    with pytest.raises(ResourceError) as caught:
        pod_template(service, "worker:1", NO_ADMIN_KEY)
    assert caught.value.field == field

"""What the chart, the CRDs and the operator say of each other: settings, rights, labels, limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from crd_rules import admission_errors
from crd_schema import CRD_FILES, REPOSITORY, crd_of_kind, load_crd
from helm_binary import Helm, find_helm
from octavo_operator.cli import main
from octavo_operator.labels import APP_NAME, LABEL_NAME
from octavo_operator.manifests.kinds import (
    CHILD_KINDS,
    CONFIG_MAP,
    INFERENCE_SERVICE,
    LORA_ADAPTER,
    POD,
    Kind,
)
from octavo_operator.manifests.worker_command import ADMIN_PORT, WORKER_PORT
from octavo_operator.resources.engine import OWNED_FLAGS
from octavo_operator.settings import LOG_FORMATS, LOG_LEVELS, OperatorSettings, operator_settings

CHART = REPOSITORY / "charts" / "octavo"


@pytest.fixture(scope="module")
def helm() -> Helm:
    return find_helm()


@pytest.fixture(scope="module")
def objects(helm: Helm) -> list[dict[str, Any]]:
    return helm.template(CHART)


def _container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = (item for item in objects if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def _environment(objects: list[dict[str, Any]]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in _container(objects)["env"] if "value" in item}


def test_chart_without_values_states_the_operators_own_defaults(
    objects: list[dict[str, Any]],
) -> None:
    told = operator_settings(_environment(objects))
    assert told.worker_peers is not None
    names = [
        [peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in peers]
        for peers in (told.worker_peers.api, told.worker_peers.admin)
    ]
    assert names == [["octavo"], ["octavo", "prometheus"]]
    assert replace(told, worker_peers=OperatorSettings().worker_peers) == OperatorSettings()


def test_every_variable_of_the_chart_reaches_a_setting(helm: Helm) -> None:
    changed = helm.template(
        CHART,
        {
            "namespaces": ["team-a", "team-b"],
            "workerImage": {"repository": "org/worker", "tag": "v9"},
            "workerNetworkPolicy": {"enabled": False},
            "logLevel": "DEBUG",
            "logFormat": "json",
            "metrics": {"port": 9100},
            "activator": {"port": 20000, "holdSeconds": 60},
            "prometheusUrl": "http://prometheus:9090",
            "probePort": 9101,
        },
    )
    assert operator_settings(_environment(changed)) == OperatorSettings(
        namespaces=("team-a", "team-b"),
        worker_image="ghcr.io/org/worker:v9",
        worker_peers=None,
        log_level="DEBUG",
        log_format="json",
        activator_port=20000,
        activator_hold_s=60.0,
        prometheus_url="http://prometheus:9090",
        metrics_port=9100,
        probe_port=9101,
    )


def test_chart_offers_the_operators_log_levels_and_formats() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert schema["properties"]["logLevel"]["enum"] == list(LOG_LEVELS)
    assert schema["properties"]["logFormat"]["enum"] == list(LOG_FORMATS)


def test_command_of_the_chart_is_one_the_operator_knows(
    objects: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = _container(objects)["command"]
    assert program == "octavo-operator"
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert stopped.value.code == 0
    assert f"octavo-operator {arguments[0]}" in capsys.readouterr().out


def test_role_covers_every_kind_the_operator_deals_with(objects: list[dict[str, Any]]) -> None:
    (role,) = (
        item
        for item in objects
        if item["kind"] == "ClusterRole" and item["metadata"]["name"] == "octavo-operator"
    )
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }

    def needed(kind: Kind, *verbs: str, subresource: str = "") -> set[tuple[str, str, str]]:
        return {(kind.group, kind.plural + subresource, verb) for verb in verbs}

    follow = ("list", "watch")
    wanted = needed(POD, *follow).union(
        *(needed(kind, "get", *follow, "create", "patch", "delete") for kind in CHILD_KINDS),
        needed(INFERENCE_SERVICE, "get", *follow),
        needed(LORA_ADAPTER, *follow),
        *(
            needed(kind, "patch", subresource="/status")
            for kind in (INFERENCE_SERVICE, LORA_ADAPTER)
        ),
        needed(LORA_ADAPTER, "patch"),
        needed(CONFIG_MAP, "get", "list", "watch", "create", "patch"),
    )
    assert wanted <= granted


def test_network_policy_reaches_the_workers(objects: list[dict[str, Any]]) -> None:
    (policy,) = (item for item in objects if item["kind"] == "NetworkPolicy")
    (rule,) = (rule for rule in policy["spec"]["egress"] if "to" in rule)
    (peer,) = rule["to"]
    assert peer["podSelector"]["matchLabels"] == {LABEL_NAME: APP_NAME}
    assert rule["ports"] == [
        {"port": port, "protocol": "TCP"} for port in (WORKER_PORT, ADMIN_PORT)
    ]


def test_crds_define_the_kinds_the_operator_knows() -> None:
    defined = {
        Kind(spec["group"], spec["versions"][0]["name"], names["kind"], names["plural"])
        for spec, names in ((crd["spec"], crd["spec"]["names"]) for crd in map(load_crd, CRD_FILES))
    }
    assert defined == {INFERENCE_SERVICE, LORA_ADAPTER}


@pytest.mark.parametrize(
    "flag", sorted(OWNED_FLAGS | {f"--{flag[2:].replace('-', '_')}" for flag in OWNED_FLAGS})
)
def test_crd_refuses_the_flags_that_the_operator_writes(flag: str) -> None:
    document = {
        "metadata": {"name": "chat"},
        "spec": {"model": {"uri": "hf://a/b"}, "replicas": 1, "engine": {"args": [f"{flag}=1"]}},
    }
    (error,) = admission_errors(crd_of_kind("InferenceService"), document)
    assert "must not repeat a flag" in error

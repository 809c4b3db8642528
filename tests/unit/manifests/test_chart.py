"""The chart, rendered by a real helm for every branch of its values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import kubernetes_validate
import pytest
import yaml

from crd_rules import admission_errors
from crd_schema import CRD_FILES, REPOSITORY, crd_of_kind, load_crd
from helm_binary import Helm, HelmError

CHART = REPOSITORY / "charts" / "octavo"
DIGEST = "sha256:" + "0123456789abcdef" * 4
MIRROR = "registry.internal:5000/mirror"

BRANCHES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "namespaced": {"namespaces": ["team-a", "team-b"]},
    "own_namespace": {"namespaces": ["octavo-system"]},
    "without_crds": {"crds": {"install": False}},
    "crds_go_with_the_release": {"crds": {"keep": False}},
    "digests": {"image": {"digest": DIGEST}, "workerImage": {"digest": DIGEST}},
    "air_gapped": {"imageRegistry": MIRROR, "imagePullSecrets": [{"name": "mirror"}]},
    "pod_monitor": {
        "metrics": {"port": 8090, "podMonitor": {"enabled": True, "labels": {"release": "prom"}}}
    },
    "alerts": {"metrics": {"alerts": {"enabled": True, "labels": {"release": "prom"}}}},
    "nothing_reaches_it": {
        "networkPolicy": {"metricsFrom": []},
        "activator": {"enabled": False},
    },
    "without_hook": {"preDeleteHook": {"enabled": False}},
    "dashboard": {"dashboard": {"enabled": True, "annotations": {"grafana_folder": "LLM"}}},
    "nobody_reads_metrics": {"networkPolicy": {"metricsFrom": []}},
    "without_network_policy": {"networkPolicy": {"enabled": False}},
    "rbac_elsewhere": {
        "rbac": {"create": False},
        "serviceAccount": {"create": False, "name": "given"},
    },
    "no_aggregation": {"rbac": {"aggregate": False}},
    "service_account": {"serviceAccount": {"name": "own", "annotations": {"a": "b"}}},
    "placement": {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "pool", "operator": "Exists"}]}
                    ]
                }
            }
        },
        "priorityClassName": "system-cluster-critical",
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "logLevel": "DEBUG",
        "probePort": 8082,
    },
    "workers_open_to_all": {"workerNetworkPolicy": {"enabled": False}},
    "workers_open_to_a_gateway": {
        "workerNetworkPolicy": {
            "from": [
                {
                    "namespaceSelector": {
                        "matchLabels": {"kubernetes.io/metadata.name": "envoy-gateway-system"}
                    }
                }
            ]
        }
    },
    "names": {"nameOverride": "llm", "fullnameOverride": "llm-operator"},
}

# Everything the operator may ever do, as (API group, resource): verbs.
OWNED = frozenset({"get", "list", "watch", "create", "patch", "delete"})
READ = frozenset({"get", "list", "watch"})
FOLLOW = frozenset({"list", "watch"})
WORKLOAD_RIGHTS = {
    ("serving.octavo.dev", "inferenceservices"): READ,
    ("serving.octavo.dev", "loraadapters"): FOLLOW | {"patch"},
    ("serving.octavo.dev", "inferenceservices/status"): frozenset({"patch"}),
    ("serving.octavo.dev", "loraadapters/status"): frozenset({"patch"}),
    ("apps", "deployments"): OWNED,
    ("batch", "jobs"): OWNED,
    ("", "services"): OWNED,
    ("", "serviceaccounts"): OWNED,
    ("policy", "poddisruptionbudgets"): OWNED,
    ("autoscaling", "horizontalpodautoscalers"): OWNED,
    ("discovery.k8s.io", "endpointslices"): OWNED,
    ("networking.k8s.io", "networkpolicies"): OWNED,
    ("keda.sh", "scaledobjects"): OWNED,
    ("leaderworkerset.x-k8s.io", "leaderworkersets"): OWNED,
    ("inference.networking.k8s.io", "inferencepools"): OWNED,
    ("monitoring.coreos.com", "podmonitors"): OWNED,
    ("monitoring.coreos.com", "prometheusrules"): OWNED,
    ("", "pods"): FOLLOW,
    ("", "configmaps"): frozenset({"get", "list", "watch", "create", "patch"}),
    ("", "events"): frozenset({"create", "patch"}),
}
OWN_RIGHTS = {
    ("coordination.k8s.io", "leases"): frozenset({"create", "get", "patch"}),
    ("", "secrets"): frozenset({"create", "get"}),
}
DISCOVERY_RIGHTS = {
    ("apiextensions.k8s.io", "customresourcedefinitions"): FOLLOW,
    ("", "nodes"): frozenset({"list"}),
}

OPERATOR_PEER = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "octavo-system"}},
    "podSelector": {
        "matchLabels": {
            "app.kubernetes.io/component": "operator",
            "app.kubernetes.io/instance": "octavo",
            "app.kubernetes.io/name": "octavo",
        }
    },
}
PROMETHEUS_PEER = {
    "namespaceSelector": {},
    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
}
COMPACT: dict[str, Any] = {"separators": (",", ":"), "sort_keys": True}

Objects = list[dict[str, Any]]

branches = pytest.mark.parametrize("branch", BRANCHES)


@pytest.fixture(scope="session")
def everything(helm: Helm) -> dict[str, Objects]:
    """The chart's objects for each branch, hooks and all, rendered once."""
    return {name: helm.template(CHART, values) for name, values in BRANCHES.items()}


@pytest.fixture(scope="session")
def rendered(everything: dict[str, Objects]) -> dict[str, Objects]:
    """Those that live as long as the release."""
    return {
        name: [item for item in objects if not is_hook(item)]
        for name, objects in everything.items()
    }


@pytest.fixture(scope="session")
def hooks(everything: dict[str, Objects]) -> dict[str, Objects]:
    """Those that exist while a hook runs."""
    return {
        name: [item for item in objects if is_hook(item)] for name, objects in everything.items()
    }


def is_hook(item: Mapping[str, Any]) -> bool:
    return "helm.sh/hook" in (item["metadata"].get("annotations") or {})


def of_kind(objects: Objects, kind: str) -> Objects:
    return [item for item in objects if item["kind"] == kind]


def the(objects: Objects, kind: str) -> dict[str, Any]:
    (item,) = of_kind(objects, kind)
    return item


def container(objects: Objects) -> dict[str, Any]:
    (found,) = the(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment(objects: Objects) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container(objects)["env"] if "value" in item}


def rights(role: Mapping[str, Any]) -> dict[tuple[str, str], frozenset[str]]:
    found: dict[tuple[str, str], frozenset[str]] = {}
    for rule in role["rules"]:
        assert set(rule) <= {"apiGroups", "resources", "verbs", "resourceNames"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                key = (group, resource)
                found[key] = found.get(key, frozenset()) | frozenset(rule["verbs"])
    return found


def roles_of_operator(objects: Objects) -> Iterator[dict[str, Any]]:
    """The roles that a binding gives to the operator's service account."""
    account = the(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    for binding in of_kind(objects, "RoleBinding") + of_kind(objects, "ClusterRoleBinding"):
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account, "namespace": "octavo-system"}
        ]
        namespace = binding["metadata"].get("namespace")
        (role,) = (
            role
            for role in of_kind(objects, binding["roleRef"]["kind"])
            if role["metadata"]["name"] == binding["roleRef"]["name"]
            and role["metadata"].get("namespace") == namespace
        )
        yield role


def test_lint_has_nothing_to_say(helm: Helm) -> None:
    assert "0 chart(s) failed" in helm.run("lint", "--strict", str(CHART))


@branches
def test_built_in_kinds_are_valid(everything: dict[str, Objects], branch: str) -> None:
    checked = 0
    for item in everything[branch]:
        if item["kind"] not in {"CustomResourceDefinition", "PodMonitor", "PrometheusRule"}:
            kubernetes_validate.validate(item, "1.34", strict=True)
            checked += 1
    assert checked >= 1


@branches
def test_namespaced_objects_name_their_namespace(
    everything: dict[str, Objects], branch: str
) -> None:
    cluster_wide = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    for item in everything[branch]:
        assert ("namespace" in item["metadata"]) == (item["kind"] not in cluster_wide)


@branches
def test_no_two_objects_are_the_same(everything: dict[str, Objects], branch: str) -> None:
    keys = [
        (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"])
        for item in everything[branch]
    ]
    assert len(keys) == len(set(keys))


@branches
def test_operator_pod_keeps_the_restricted_standard(
    rendered: dict[str, Objects], branch: str
) -> None:
    pod = the(rendered[branch], "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert [set(volume) for volume in pod["volumes"]] == [{"name", "emptyDir"}]
    assert container(rendered[branch])["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }


@branches
def test_selector_finds_the_pod(rendered: dict[str, Objects], branch: str) -> None:
    spec = the(rendered[branch], "Deployment")["spec"]
    labels = spec["template"]["metadata"]["labels"].items()
    selectors = [spec["selector"]["matchLabels"]]
    for kind, field in (("NetworkPolicy", "podSelector"), ("PodMonitor", "selector")):
        selectors += [
            item["spec"][field]["matchLabels"] for item in of_kind(rendered[branch], kind)
        ]
    for selector in selectors:
        assert selector.items() <= labels


@branches
def test_probes_and_metrics_use_ports_that_the_operator_is_told(
    rendered: dict[str, Objects], branch: str
) -> None:
    told = environment(rendered[branch])
    ports = {
        port["name"]: str(port["containerPort"]) for port in container(rendered[branch])["ports"]
    }
    assert ports == {"metrics": told["OCTAVO_METRICS_PORT"], "probes": told["OCTAVO_PROBE_PORT"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = container(rendered[branch])[probe]["httpGet"]
        assert get == {"path": "/healthz", "port": "probes"}


def test_operator_is_started_with_its_settings(rendered: dict[str, Objects]) -> None:
    objects = rendered["defaults"]
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert container(objects)["command"] == ["octavo-operator", "run"]
    assert container(objects)["image"] == f"ghcr.io/octavo-serving/octavo-operator:{version}"
    assert environment(objects) == {
        "OCTAVO_NAMESPACES": "",
        "OCTAVO_WORKER_IMAGE": f"ghcr.io/octavo-serving/octavo-worker:{version}",
        "OCTAVO_WORKER_PEERS": json.dumps(
            {"admin": [OPERATOR_PEER, PROMETHEUS_PEER], "api": [OPERATOR_PEER]}, **COMPACT
        ),
        "OCTAVO_LEASE_NAME": "octavo-operator",
        "OCTAVO_ADMIN_KEY_SECRET": "octavo-operator-admin-key",
        "OCTAVO_ACTIVATOR_PORT": "9000",
        "OCTAVO_ACTIVATOR_HOLD_S": "120",
        "OCTAVO_LOG_LEVEL": "INFO",
        "OCTAVO_LOG_FORMAT": "text",
        "OCTAVO_METRICS_PORT": "8080",
        "OCTAVO_PROBE_PORT": "8081",
    }


def test_only_one_of_the_operators_works_at_a_time(rendered: dict[str, Objects]) -> None:
    """They stand for election with a Lease that their role lets them hold."""
    objects = rendered["defaults"]
    assert the(objects, "Deployment")["spec"]["replicas"] == 2
    name = environment(objects)["OCTAVO_LEASE_NAME"]
    (own,) = [role for role in roles_of_operator(objects) if role["kind"] == "Role"]
    held = [rule for rule in own["rules"] if rule["resources"] == ["leases"]]
    assert [rule["resourceNames"] for rule in held if "resourceNames" in rule] == [[name]]
    fields = {
        item["name"]: item["valueFrom"]["fieldRef"]["fieldPath"]
        for item in container(objects)["env"]
        if "valueFrom" in item
    }
    assert fields == {
        "OCTAVO_POD_NAME": "metadata.name",
        "OCTAVO_POD_NAMESPACE": "metadata.namespace",
        "OCTAVO_POD_IP": "status.podIP",
    }


def test_workers_are_open_to_whom_the_values_name(rendered: dict[str, Objects]) -> None:
    def peers(branch: str) -> str:
        return environment(rendered[branch])["OCTAVO_WORKER_PEERS"]

    assert peers("workers_open_to_all") == "everybody"
    (gateway,) = BRANCHES["workers_open_to_a_gateway"]["workerNetworkPolicy"]["from"]
    assert json.loads(peers("workers_open_to_a_gateway")) == {
        "api": [OPERATOR_PEER, gateway],
        "admin": [OPERATOR_PEER, PROMETHEUS_PEER],
    }


def test_named_namespaces_are_told_to_the_operator(rendered: dict[str, Objects]) -> None:
    assert environment(rendered["namespaced"])["OCTAVO_NAMESPACES"] == "team-a,team-b"


def test_digest_wins_over_tag(rendered: dict[str, Objects]) -> None:
    objects = rendered["digests"]
    assert container(objects)["image"] == f"ghcr.io/octavo-serving/octavo-operator@{DIGEST}"
    worker = environment(objects)["OCTAVO_WORKER_IMAGE"]
    assert worker == f"ghcr.io/octavo-serving/octavo-worker@{DIGEST}"


def test_air_gapped_cluster_pulls_nothing_from_elsewhere(rendered: dict[str, Objects]) -> None:
    objects = [
        item for item in rendered["air_gapped"] if item["kind"] != "CustomResourceDefinition"
    ]
    assert container(objects)["image"].startswith(f"{MIRROR}/octavo-serving/octavo-operator:")
    assert environment(objects)["OCTAVO_WORKER_IMAGE"].startswith(f"{MIRROR}/octavo-serving/")
    assert "ghcr.io" not in json.dumps(objects)
    pod = the(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "mirror"}]


def test_placement_reaches_the_pod(rendered: dict[str, Objects]) -> None:
    values, template = (
        BRANCHES["placement"],
        the(rendered["placement"], "Deployment")["spec"]["template"],
    )
    for field in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert template["spec"][field] == values[field]
    assert template["metadata"]["annotations"] == {"a": "b"}
    assert template["metadata"]["labels"]["c"] == "d"
    assert environment(rendered["placement"])["OCTAVO_LOG_LEVEL"] == "DEBUG"


def test_cluster_wide_rights_are_exactly_these(rendered: dict[str, Objects]) -> None:
    own, cluster = sorted(
        roles_of_operator(rendered["defaults"]), key=lambda role: role["kind"], reverse=True
    )
    assert cluster["kind"] == "ClusterRole"
    assert rights(cluster) == {**WORKLOAD_RIGHTS, **DISCOVERY_RIGHTS}
    assert (own["kind"], own["metadata"]["namespace"]) == ("Role", "octavo-system")
    assert rights(own) == OWN_RIGHTS


def test_namespaced_rights_are_exactly_these_and_none_cluster_wide(
    rendered: dict[str, Objects],
) -> None:
    objects = rendered["namespaced"]
    assert of_kind(objects, "ClusterRole") == []
    assert of_kind(objects, "ClusterRoleBinding") == []
    by_namespace = {
        role["metadata"]["namespace"]: rights(role) for role in roles_of_operator(objects)
    }
    assert by_namespace == {
        "octavo-system": OWN_RIGHTS,
        "team-a": WORKLOAD_RIGHTS,
        "team-b": WORKLOAD_RIGHTS,
    }


@branches
def test_hook_has_the_rights_to_stop_the_operator_and_release_and_no_others(
    hooks: dict[str, Objects], branch: str
) -> None:
    values = BRANCHES[branch]
    if not values.get("rbac", {}).get("create", True) or "preDeleteHook" in values:
        assert hooks[branch] == []
        return
    held = {
        ("serving.octavo.dev", "inferenceservices"): frozenset({"get", "list", "patch"}),
        ("serving.octavo.dev", "loraadapters"): frozenset({"get", "list", "patch"}),
    }
    stopped = {("apps", "deployments"): frozenset({"patch"}), ("", "pods"): frozenset({"list"})}
    roles = of_kind(hooks[branch], "Role") + of_kind(hooks[branch], "ClusterRole")
    namespaces = values.get("namespaces") or [None]
    found = [(role["metadata"].get("namespace"), rights(role)) for role in roles]
    assert sorted(found, key=str) == sorted(
        [("octavo-system", stopped), *((namespace, held) for namespace in namespaces)], key=str
    )
    (named,) = (
        rule["resourceNames"] for role in roles for rule in role["rules"] if "resourceNames" in rule
    )
    (account,) = of_kind(hooks[branch], "ServiceAccount")
    for binding in of_kind(hooks[branch], "RoleBinding") + of_kind(
        hooks[branch], "ClusterRoleBinding"
    ):
        (subject,) = binding["subjects"]
        assert subject["name"] == account["metadata"]["name"]
    job = the(hooks[branch], "Job")
    assert f"--deployment={named[0]}" in job["spec"]["template"]["spec"]["containers"][0]["command"]


@branches
def test_hook_pod_is_the_operators_in_image_security_and_place(
    rendered: dict[str, Objects], hooks: dict[str, Objects], branch: str
) -> None:
    if not hooks[branch]:
        return
    deployment = the(rendered[branch], "Deployment")
    ours = deployment["spec"]["template"]["spec"]
    pod = the(hooks[branch], "Job")["spec"]["template"]
    for field in ("securityContext", "nodeSelector", "tolerations", "affinity", "volumes"):
        assert pod["spec"].get(field) == ours.get(field)
    for field in ("image", "imagePullPolicy", "securityContext", "resources"):
        assert pod["spec"]["containers"][0][field] == ours["containers"][0][field]
    assert pod["spec"].get("imagePullSecrets") == ours.get("imagePullSecrets")
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= pod["metadata"]["labels"].items()


@branches
def test_no_role_reaches_secrets_exec_or_wildcards(
    everything: dict[str, Objects], branch: str
) -> None:
    """dynamo 8907: rights that are too wide."""
    for role in of_kind(everything[branch], "Role") + of_kind(everything[branch], "ClusterRole"):
        for (group, resource), verbs in rights(role).items():
            assert "*" not in {group, resource, *verbs}
            assert resource not in {"pods/exec", "pods/attach", "pods/portforward"}
            # One Secret of its own namespace, by name; see the next test.
            is_own = role["metadata"]["name"].endswith("-own")
            assert resource != "secrets" or is_own
            assert not verbs & {"escalate", "bind", "impersonate"}


def test_lease_and_key_that_exist_can_be_touched_by_name_only(
    rendered: dict[str, Objects],
) -> None:
    own = the(rendered["defaults"], "Role")
    deployment = the(rendered["defaults"], "Deployment")
    name = deployment["metadata"]["name"]
    environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    (secret,) = (item["value"] for item in environment if item["name"].endswith("KEY_SECRET"))
    rules = own["rules"]
    assert [(rule["resources"], rule["verbs"], rule.get("resourceNames")) for rule in rules] == [
        (["leases"], ["create"], None),
        (["leases"], ["get", "patch"], [name]),
        (["secrets"], ["create"], None),
        (["secrets"], ["get"], [secret]),
    ]


def test_people_get_both_kinds_through_the_roles_they_have(rendered: dict[str, Objects]) -> None:
    roles = {r["metadata"]["name"]: r for r in of_kind(rendered["defaults"], "ClusterRole")}
    view, edit = roles["octavo-operator-view"], roles["octavo-operator-edit"]
    label = "rbac.authorization.k8s.io/aggregate-to-"
    assert view["metadata"]["labels"][f"{label}view"] == "true"
    assert edit["metadata"]["labels"][f"{label}edit"] == "true"
    assert all(verbs <= READ for verbs in rights(view).values())
    assert "inferenceservices/status" not in {resource for _, resource in rights(edit)}
    assert len(of_kind(rendered["no_aggregation"], "ClusterRole")) == 1


def test_rbac_and_account_can_come_from_elsewhere(rendered: dict[str, Objects]) -> None:
    objects = rendered["rbac_elsewhere"]
    kinds = {item["kind"] for item in objects}
    assert not kinds & {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
    assert "ServiceAccount" not in kinds
    pod = the(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "given"


def test_service_account_token_goes_to_the_operator_pod_only(
    rendered: dict[str, Objects],
) -> None:
    account = the(rendered["service_account"], "ServiceAccount")
    assert account["metadata"]["name"] == "own"
    assert account["metadata"]["annotations"] == {"a": "b"}
    assert account["automountServiceAccountToken"] is False
    pod = the(rendered["service_account"], "Deployment")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True


def test_crds_are_those_of_the_repository(rendered: dict[str, Objects]) -> None:
    shipped = of_kind(rendered["crds_go_with_the_release"], "CustomResourceDefinition")
    assert sorted(shipped, key=lambda crd: str(crd["metadata"]["name"])) == [
        load_crd(path) for path in CRD_FILES
    ]


def test_packaged_chart_carries_the_crds(
    helm: Helm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The link out of the chart's folder must become files when the chart leaves the repository."""
    folder = tmp_path_factory.mktemp("package")
    helm.run("package", str(CHART), "--destination", str(folder))
    (archive,) = folder.glob("octavo-*.tgz")
    crds = of_kind(helm.template(archive), "CustomResourceDefinition")
    assert len(crds) == len(CRD_FILES)


def test_crds_outlive_the_release_unless_told_otherwise(rendered: dict[str, Objects]) -> None:
    for crd in of_kind(rendered["defaults"], "CustomResourceDefinition"):
        assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert of_kind(rendered["without_crds"], "CustomResourceDefinition") == []


def test_network_policy_opens_metrics_and_held_calls_only(rendered: dict[str, Objects]) -> None:
    policy = the(rendered["defaults"], "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    held, metrics = policy["ingress"]
    assert held == {"ports": [{"port": 9000, "endPort": 9999, "protocol": "TCP"}]}
    assert metrics["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    assert the(rendered["nobody_reads_metrics"], "NetworkPolicy")["spec"]["ingress"] == [held]
    assert the(rendered["nothing_reaches_it"], "NetworkPolicy")["spec"]["ingress"] == []
    assert of_kind(rendered["without_network_policy"], "NetworkPolicy") == []


def test_network_policy_follows_the_watched_namespaces(rendered: dict[str, Objects]) -> None:
    def worker_peers(branch: str) -> Any:
        egress = the(rendered[branch], "NetworkPolicy")["spec"]["egress"]
        (rule,) = (rule for rule in egress if "to" in rule)
        (peer,) = rule["to"]
        assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "octavo-worker"}
        return peer["namespaceSelector"]

    assert worker_peers("defaults") == {}
    (expression,) = worker_peers("namespaced")["matchExpressions"]
    assert expression["values"] == ["team-a", "team-b"]


def test_pod_monitor_is_there_when_asked_for(rendered: dict[str, Objects]) -> None:
    assert of_kind(rendered["defaults"], "PodMonitor") == []
    monitor = the(rendered["pod_monitor"], "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert monitor["spec"]["podMetricsEndpoints"] == [
        {"port": "metrics", "path": "/metrics", "interval": "30s"}
    ]


def test_alerts_on_the_operator_are_there_when_asked_for(rendered: dict[str, Objects]) -> None:
    """What they say is tests/contract/test_alerts.py's."""
    assert of_kind(rendered["defaults"], "PrometheusRule") == []
    rule = the(rendered["alerts"], "PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "prom"
    (group,) = rule["spec"]["groups"]
    name = container(rendered["alerts"])["name"]
    for alert in group["rules"]:
        assert f'{{namespace="octavo-system",container="{name}"}}' in alert["expr"]


def test_dashboards_are_the_files_of_the_repository(rendered: dict[str, Objects]) -> None:
    assert of_kind(rendered["defaults"], "ConfigMap") == []
    shipped = the(rendered["dashboard"], "ConfigMap")
    files = {file.name: file for file in (CHART / "files" / "dashboards").glob("*.json")}
    assert len(files) == 2
    for name, text in shipped["data"].items():
        file = files.pop(name.removeprefix("octavo-"))
        assert json.loads(text) == json.loads(file.read_text(encoding="utf-8"))
    assert files == {}
    assert shipped["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_resource_in_the_notes_is_one_a_cluster_accepts() -> None:
    notes = (CHART / "templates" / "NOTES.txt").read_text(encoding="utf-8")
    (text,) = re.findall(r"<<'YAML'\n(.*?)\n  YAML", notes, flags=re.DOTALL)
    document = yaml.safe_load(text)
    assert admission_errors(crd_of_kind(document["kind"]), document) == []


def test_readme_lists_every_value_with_its_default() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    leaves = dict(_leaves(values))
    listed = dict(re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", readme, flags=re.MULTILINE))
    assert listed == {name: json.dumps(value) for name, value in leaves.items()}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@pytest.mark.parametrize(
    "values",
    [
        {"imagee": {}},
        {"image": {"digest": "sha256:short"}},
        {"image": {"repository": "Upper/Case"}},
        {"image": {"pullPolicy": "Sometimes"}},
        {"workerImage": {"pullPolicy": "Always"}},
        {"imageRegistry": "https://registry.internal"},
        {"imagePullSecrets": ["name"]},
        {"namespaces": "default"},
        {"namespaces": ["Bad_Name"]},
        {"logLevel": "LOUD"},
        {"metrics": {"port": 80}},
        {"metrics": {"port": "8080"}},
        {"metrics": {"podMonitor": {"interval": "often"}}},
        {"probePort": 70000},
        {"crds": {"install": "yes"}},
        {"crds": {"keep": 1}},
        {"rbac": {"create": "false"}},
        {"serviceAccount": {"name": "Not Valid"}},
        {"networkPolicy": {"apiServerPorts": []}},
        {"resources": {"claims": []}},
        {"podLabels": {"a": 1}},
        {"nodeSelector": []},
        {"terminationGracePeriodSeconds": 0},
        {"nameOverride": "Not Valid"},
    ],
    ids=json.dumps,
)
def test_values_schema_refuses(helm: Helm, values: dict[str, Any]) -> None:
    with pytest.raises(HelmError, match="values don't meet the specifications of the schema"):
        helm.template(CHART, values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"metrics": {"port": 9999}}, "metrics.port is 9999, among the ports 9000 to 9999"),
        ({"activator": {"port": 8081}}, "probePort is 8081, among the ports 8081 to 9080"),
    ],
    ids=["metrics", "probes"],
)
def test_port_among_those_of_the_activator_is_refused(
    helm: Helm, values: dict[str, Any], sentence: str
) -> None:
    """Callers may reach those from everywhere."""
    with pytest.raises(HelmError, match=sentence):
        helm.template(CHART, values)
    activator = {**values.get("activator", {}), "enabled": False}
    assert helm.template(CHART, {**values, "activator": activator})


def test_port_that_is_to_serve_two_ends_is_refused(helm: Helm) -> None:
    with pytest.raises(HelmError, match="probePort are both 8080; choose another"):
        helm.template(CHART, {"probePort": 8080})


def test_job_before_uninstall_has_a_name_that_its_pods_can_bear(helm: Helm) -> None:
    """A Job with a longer one is refused, when it is too late to choose."""
    name = "octavo-" + "x" * 56
    (job,) = (
        item for item in helm.template(CHART, {"fullnameOverride": name}) if item["kind"] == "Job"
    )
    assert job["metadata"]["name"] == name[:56] + "-retire"
    assert f"--deployment={name}" in job["spec"]["template"]["spec"]["containers"][0]["command"]

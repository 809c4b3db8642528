"""What the planner does about what it sees, and what it says about it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_services import condition_message, conditions, inference_service
from octavo_operator.labels import ANNOTATION_UPGRADE, FIELD_MANAGER, LABEL_ADMIN_PORT
from octavo_operator.manifests.kinds import (
    DEPLOYMENT,
    INFERENCE_POOL,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    POD_MONITOR,
    PROMETHEUS_RULE,
    SERVICE,
    SERVICE_ACCOUNT,
    kind_of,
)
from octavo_operator.reconcile.drift import is_applied
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.reconcile.observed import Observed
from octavo_operator.reconcile.plan import plan
from octavo_operator.reconcile.status import Obstacle
from octavo_operator.worker_peers import WorkerPeers
from planner_world import (
    IMAGE,
    NOW,
    World,
    broken_pod,
    pod_of,
    unschedulable,
    waiting,
    without_admin_port,
    worker_of,
)

LATER = NOW + timedelta(hours=1)


async def test_first_plan_creates_all_and_the_second_nothing() -> None:
    world = World(inference_service(), frozenset({POD_MONITOR}))
    first = await world.step()
    assert [apply.manifest["kind"] for apply in first.applies] == [
        "ServiceAccount",
        "Service",
        "Deployment",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "PodMonitor",
    ]
    await world.step()
    assert (await world.step(now=LATER)).is_empty


async def test_pod_monitor_needs_its_kind() -> None:
    world = World(inference_service())
    service = await world.settle()
    assert conditions(service)["FeaturesReady"] == ("True", "AllInEffect")
    assert "no PodMonitor kind" in condition_message(service, "FeaturesReady")


async def test_alerts_need_their_kind() -> None:
    without = await World(inference_service(), frozenset({POD_MONITOR})).settle()
    assert conditions(without)["FeaturesReady"] == ("True", "AllInEffect")
    assert "no PrometheusRule kind" in condition_message(without, "FeaturesReady")
    world = World(inference_service(), frozenset({PROMETHEUS_RULE}))
    assert "PrometheusRule" not in condition_message(await world.settle(), "FeaturesReady")
    assert (await world.store.list_objects(PROMETHEUS_RULE, "models", {})).items


async def test_inference_pool_is_made_where_its_kind_is_served() -> None:
    wanted = inference_service(routing={"inferencePool": True})
    world = World(wanted, frozenset({INFERENCE_POOL}))
    assert conditions(await world.settle())["FeaturesReady"] == ("True", "AllInEffect")
    (pool,) = (await world.store.list_objects(INFERENCE_POOL, "models", {})).items
    assert pool["spec"]["endpointPickerRef"]["name"] == "chat-epp"
    world.resource = inference_service()
    await world.settle()
    assert not (await world.store.list_objects(INFERENCE_POOL, "models", {})).items


async def test_resource_being_deleted_is_left_to_the_collector() -> None:
    world = World(inference_service())
    observed = await world.observe()
    resource = copy.deepcopy(dict(observed.resource))
    resource["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    gone = Observed(resource, (), (), frozenset())
    assert plan(gone, IMAGE, NOW).is_empty


async def test_conditions_follow_the_workload_from_nothing_to_serving() -> None:
    world = World(inference_service(replicas=2))
    created = await world.settle()
    assert conditions(created) == {
        "ModelReady": ("False", "Loading"),
        "WorkloadReady": ("False", "PodsStarting"),
        "Progressing": ("True", "RollingOut"),
        "Ready": ("False", "PodsStarting"),
        "UpgradeAvailable": ("False", "UpToDate"),
        "FeaturesReady": ("True", "AllInEffect"),
        "PlacementReady": ("Unknown", "GPUMemoryUnknown"),
    }
    await world.report_pods(replicas=2, updatedReplicas=2, readyReplicas=1, availableReplicas=1)
    half = await world.settle(now=LATER)
    assert conditions(half)["Ready"] == ("True", "Serving")
    assert conditions(half)["WorkloadReady"] == ("False", "PodsStarting")
    await world.all_ready(2)
    done = await world.settle(now=LATER)
    assert conditions(done) == {
        "ModelReady": ("True", "Loaded"),
        "WorkloadReady": ("True", "AllPodsReady"),
        "Progressing": ("False", "Complete"),
        "Ready": ("True", "Serving"),
        "UpgradeAvailable": ("False", "UpToDate"),
        "FeaturesReady": ("True", "AllInEffect"),
        "PlacementReady": ("True", "Proved"),
    }
    assert {key: done["status"][key] for key in done["status"] if key != "conditions"} == {
        "observedGeneration": 1,
        "replicas": 2,
        "readyReplicas": 2,
        "summary": {"replicas": "2/2"},
        "selector": "app.kubernetes.io/name=octavo-worker,serving.octavo.dev/service=chat",
        "url": "http://chat.models.svc:8000",
        "image": IMAGE,
        "placement": {"tensor": 1, "pipeline": 1, "nodes": 1, "product": ""},
    }


async def test_transition_time_changes_only_with_the_status() -> None:
    world = World(inference_service())
    await world.settle(now=NOW)
    await world.all_ready()
    service = await world.settle(now=LATER)
    since = {item["type"]: item["lastTransitionTime"] for item in service["status"]["conditions"]}
    assert since["Ready"] == "2026-01-01T01:00:00Z"
    assert since["UpgradeAvailable"] == "2026-01-01T00:00:00Z"
    assert {item["observedGeneration"] for item in service["status"]["conditions"]} == {1}


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (waiting("ImagePullBackOff"), "ImagePullFailed", "cannot pull worker:1: because"),
        (waiting("CreateContainerConfigError"), "ContainerConfigError", "check that the Secrets"),
        (
            waiting("CrashLoopBackOff", exitCode=3, message="one\nConfigError: no such model\n"),
            "CrashLooping",
            "exit code 3: ConfigError: no such model (see kubectl logs chat-1",
        ),
        (waiting("CrashLoopBackOff", exitCode=137, reason="OOMKilled"), "OutOfMemory", "memory"),
        (broken_pod(phase="Failed", reason="Evicted"), "PodFailed", "chat-1 failed: Evicted"),
        (
            unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
            "InsufficientGPU",
            "needs 2 nvidia.com/gpu (H100) on one node and no node has as many free",
        ),
        (unschedulable("0/3 nodes match"), "Unschedulable", "no node takes pod chat-1"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
async def test_problem_of_a_pod_is_said_with_its_remedy(
    pod: LiveObject, reason: str, words: str
) -> None:
    world = World(inference_service(parallelism={"tensor": 2}, accelerator={"product": "H100"}))
    world.pods = (pod,)
    service = await world.settle()
    for kind in ("ModelReady", "WorkloadReady", "Progressing", "Ready"):
        assert conditions(service)[kind] == ("False", reason)
    assert words in condition_message(service, "Ready")


async def test_no_spare_gpu_during_an_update_says_how_to_go_on() -> None:
    world = World(inference_service())
    await world.settle()
    await world.all_ready()
    await world.report_pods(replicas=2, updatedReplicas=1, readyReplicas=1, availableReplicas=1)
    world.pods = (unschedulable("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),)
    service = await world.settle()
    assert conditions(service)["Ready"] == ("True", "Serving")
    assert conditions(service)["WorkloadReady"] == ("False", "InsufficientGPU")
    assert "rollout.maxUnavailable: 1" in condition_message(service, "WorkloadReady")


async def test_service_that_is_yet_to_be_placed_is_not_called_asleep() -> None:
    """Its pods are wanted; that an earlier spec had none must not look like health (gitops/)."""
    world = World(inference_service(replicas=0))
    assert conditions(await world.settle())["Ready"] == ("False", "ScaledToZero")
    world.resource = inference_service(
        replicas=None, scaling={"maxReplicas": 4}, parallelism={"tensor": "Auto"}
    )
    assert conditions(await world.settle())["Ready"] == ("False", "Inspecting")


async def test_stopping_pod_is_no_problem() -> None:
    world = World(inference_service())
    pod = copy.deepcopy(dict(waiting("CrashLoopBackOff")))
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    world.pods = (pod,)
    service = await world.settle()
    assert conditions(service)["Ready"] == ("False", "PodsStarting")


def _named(pod: LiveObject, name: str, created: str) -> LiveObject:
    return {**pod, "metadata": {**pod["metadata"], "name": name, "creationTimestamp": created}}


@pytest.mark.parametrize(
    ("evicted_at", "reason"),
    [("2026-01-01T00:00:00Z", "AllPodsReady"), ("2026-01-01T02:00:00Z", "PodFailed")],
    ids=["before", "after"],
)
async def test_evicted_pod_is_a_problem_until_a_younger_one_serves(
    evicted_at: str, reason: str
) -> None:
    """Kubernetes leaves evicted pods where they are until somebody deletes them."""
    world = World(inference_service())
    await world.settle()
    await world.all_ready()
    ready = broken_pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    evicted = broken_pod(phase="Failed", reason="Evicted")
    world.pods = (
        _named(evicted, "chat-1", evicted_at),
        _named(ready, "chat-2", "2026-01-01T01:00:00Z"),
    )
    service = await world.settle()
    assert conditions(service)["WorkloadReady"][1] == reason
    assert conditions(service)["Ready"] == ("True", "Serving")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"parallelism": {"tensor": 2}}, "the worker of this version refuses to split a model"),
        ({"engine": {"quantization": "fp8"}}, "the worker of this version does not know fp8"),
        ({"engine": {"speculative": {"method": "NGram"}}}, "spec.engine.speculative"),
        ({"rolout": {}}, "spec.rolout (did you mean rollout?)"),
    ],
    ids=["split", "quantization", "speculative", "unknown"],
)
async def test_what_is_left_out_is_said_but_the_rest_runs(spec: dict[str, Any], words: str) -> None:
    world = World(inference_service(**spec))
    service = await world.settle()
    assert conditions(service)["FeaturesReady"] == ("False", "NotImplementedYet")
    assert words in condition_message(service, "FeaturesReady")
    assert await world.deployment()


async def test_what_the_cluster_lacks_is_not_called_unimplemented() -> None:
    world = World(inference_service(routing={"inferencePool": True}))
    service = await world.settle()
    assert conditions(service)["FeaturesReady"] == ("False", "KindMissing")
    assert "install the CRDs" in condition_message(service, "FeaturesReady")


async def test_replicas_are_not_written_while_an_autoscaler_owns_them() -> None:
    world = World(inference_service(replicas=None, scaling={"maxReplicas": 8}))
    await world.settle()
    assert "replicas" not in (await world.deployment())["spec"]
    await world.store.merge(DEPLOYMENT, "models", "chat", {"spec": {"replicas": 5}}, manager="hpa")
    await world.settle()
    assert (await world.deployment())["spec"]["replicas"] == 5


async def test_number_of_pods_survives_the_change_to_an_autoscaler_and_back() -> None:
    world = World(inference_service(replicas=4))
    await world.settle()
    world.resource = inference_service(replicas=None, scaling={"maxReplicas": 8})
    await world.settle()
    assert (await world.deployment())["spec"]["replicas"] == 4
    await world.store.merge(DEPLOYMENT, "models", "chat", {"spec": {"replicas": 6}}, manager="hpa")
    await world.settle()
    assert (await world.deployment())["spec"]["replicas"] == 6
    world.resource = inference_service(replicas=2)
    await world.settle()
    assert (await world.deployment())["spec"]["replicas"] == 2


async def test_new_operator_version_restarts_nothing_until_asked() -> None:
    """kserve 5085: an upgrade of the operator restarts every model."""
    world = World(inference_service())
    await world.settle("worker:1")
    before = (await world.deployment())["spec"]
    service = await world.settle("worker:2")
    assert (await world.deployment())["spec"] == before
    assert conditions(service)["UpgradeAvailable"] == ("True", "NewerTemplate")
    assert "worker:2" in condition_message(service, "UpgradeAvailable")
    # More pods, even a changed engine: still the image that was pinned.
    world.resource["spec"].update(replicas=3, engine={"maxModelLen": 64})
    await world.settle("worker:2")
    assert (await world.deployment())["spec"]["replicas"] == 3
    assert worker_of(await world.deployment())["image"] == "worker:1"
    assert "64" in worker_of(await world.deployment())["command"]
    world.resource["metadata"]["annotations"] = {ANNOTATION_UPGRADE: "once"}
    service = await world.settle("worker:2")
    assert worker_of(await world.deployment())["image"] == "worker:2"
    assert conditions(service)["UpgradeAvailable"] == ("False", "UpToDate")
    await world.settle("worker:3")
    assert worker_of(await world.deployment())["image"] == "worker:2"
    world.resource["metadata"]["annotations"] = {ANNOTATION_UPGRADE: "auto"}
    await world.settle("worker:3")
    assert worker_of(await world.deployment())["image"] == "worker:3"
    await world.settle("worker:4")
    assert worker_of(await world.deployment())["image"] == "worker:4"


async def test_newer_rendering_of_pods_waits_for_the_upgrade_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(inference_service(image="mine:1"))
    await world.settle()
    before = (await world.deployment())["spec"]["template"]
    monkeypatch.setattr("octavo_operator.manifests.pod_template.KILL_MARGIN_S", 11)
    world.resource["spec"]["replicas"] = 2
    service = await world.settle()
    assert (await world.deployment())["spec"]["template"] == before
    assert (await world.deployment())["spec"]["replicas"] == 2
    assert "a newer pod template" in condition_message(service, "UpgradeAvailable")


async def test_pods_without_an_admin_port_keep_their_one_port_until_they_are_upgraded() -> None:
    """Theirs is the template of an operator that knew no admin port (kserve 5085)."""

    async def ports() -> tuple[list[list[str]], list[str]]:
        policy = await world.store.get(NETWORK_POLICY, "models", "chat")
        monitor = await world.store.get(POD_MONITOR, "models", "chat")
        endpoints = monitor["spec"]["podMetricsEndpoints"]
        rules = policy["spec"]["ingress"]
        return (
            [[port["port"] for port in rule["ports"]] for rule in rules],
            [endpoint["port"] for endpoint in endpoints],
        )

    world = World(inference_service(), frozenset({POD_MONITOR}))
    prometheus = {"podSelector": {"matchLabels": {"app": "prometheus"}}}
    world.worker_peers = WorkerPeers(admin=(prometheus,))
    await world.settle()
    old = without_admin_port(await world.deployment())
    await world.store.apply(old, FIELD_MANAGER)
    service = await world.settle()
    assert (await world.deployment())["spec"]["template"] == old["spec"]["template"]
    assert "a newer pod template" in condition_message(service, "UpgradeAvailable")
    assert await ports() == ([["http"], ["admin", "http"]], ["admin", "http"])

    world.pods = (pod_of(await world.deployment()),)
    world.resource["metadata"]["annotations"] = {ANNOTATION_UPGRADE: "now"}
    await world.settle()
    labels = (await world.deployment())["spec"]["template"]["metadata"]["labels"]
    assert labels[LABEL_ADMIN_PORT] == "8001"
    assert await ports() == ([["http"], ["admin", "http"]], ["admin", "http"])
    world.pods = (pod_of(await world.deployment()),)
    await world.settle()
    assert await ports() == ([["http"], ["admin"]], ["admin"])


async def test_lost_key_to_the_pods_restarts_nothing() -> None:
    world = World(inference_service())
    world.admin_key_sha256 = "a" * 64
    await world.settle()
    before = (await world.deployment())["spec"]["template"]
    assert "a" * 64 in worker_of(await world.deployment())["command"]
    world.admin_key_sha256 = "b" * 64
    service = await world.settle()
    assert (await world.deployment())["spec"]["template"] == before
    assert conditions(service)["UpgradeAvailable"] == ("True", "NewerTemplate")


async def test_own_image_is_used_at_once() -> None:
    world = World(inference_service())
    await world.settle()
    world.resource["spec"]["image"] = "mine:1"
    service = await world.settle()
    assert worker_of(await world.deployment())["image"] == "mine:1"
    assert service["status"]["image"] == "mine:1"


async def test_paused_rollout_is_said() -> None:
    world = World(inference_service(rollout={"paused": True}))
    service = await world.settle()
    assert (await world.deployment())["spec"]["paused"] is True
    assert conditions(service)["Progressing"] == ("False", "RolloutPaused")


async def test_failed_rollout_is_said() -> None:
    world = World(inference_service())
    await world.settle()
    live = await world.deployment()
    status = {
        "observedGeneration": live["metadata"]["generation"],
        "replicas": 2,
        "updatedReplicas": 1,
        "conditions": [
            {"type": "Progressing", "status": "False", "message": "has timed out"},
        ],
    }
    await world.store.write_status(DEPLOYMENT, "models", "chat", status, None)
    service = await world.settle()
    assert conditions(service)["Progressing"] == ("False", "DeadlineExceeded")


async def test_scaled_to_zero_is_neither_ready_nor_a_failure() -> None:
    world = World(inference_service(replicas=0))
    await world.settle()
    await world.all_ready(0)
    service = await world.settle()
    assert conditions(service)["Ready"] == ("False", "ScaledToZero")
    assert conditions(service)["WorkloadReady"] == ("True", "ScaledToZero")
    assert conditions(service)["ModelReady"] == ("Unknown", "ScaledToZero")


async def test_invalid_spec_leaves_the_pods_and_is_forgotten_when_mended() -> None:
    world = World(inference_service())
    await world.settle()
    await world.all_ready()
    await world.settle()
    before = await world.deployment()
    world.resource = inference_service(model={"uri": "x"})
    service = await world.settle()
    assert conditions(service)["Ready"] == ("False", "InvalidSpec")
    assert "The 1 pods of the last valid spec keep serving" in condition_message(service, "Ready")
    assert await world.deployment() == before
    world.resource = inference_service()
    assert conditions(await world.settle())["Ready"] == ("True", "Serving")


async def test_obstacle_from_the_api_is_in_the_status_and_stops_writes() -> None:
    world = World(inference_service())
    todo = plan(await world.observe(), IMAGE, NOW, Obstacle("ApplyRejected", "no such field"))
    assert todo.applies == ()
    assert todo.status is not None
    assert conditions({"status": todo.status})["Ready"] == ("False", "ApplyRejected")


async def test_child_of_a_namesake_that_is_gone_is_not_taken_over() -> None:
    world = World(inference_service())
    await world.settle()
    observed = await world.observe()
    resource = copy.deepcopy(dict(observed.resource))
    resource["metadata"]["uid"] = "another-life"
    todo = plan(Observed(resource, observed.children, (), frozenset()), IMAGE, NOW)
    assert (todo.applies, todo.deletes) == ((), ())
    assert todo.status is not None
    assert conditions({"status": todo.status})["Ready"] == ("False", "NameConflict")


async def test_deployment_as_a_server_stores_it_is_not_applied_again() -> None:
    """Seen with Kubernetes 1.36: `paused: false` is not stored, so every pass applied it anew."""
    world = World(inference_service())
    await world.settle()
    observed = await world.observe()
    children = copy.deepcopy(observed.children)
    (deployment,) = (child for child in children if child["kind"] == "Deployment")
    assert deployment["spec"].pop("paused") is False
    stored = replace(observed, children=children)
    assert plan(stored, IMAGE, NOW).applies == ()
    deployment["spec"]["paused"] = True
    (apply,) = plan(stored, IMAGE, NOW).applies
    assert apply.manifest["kind"] == "Deployment"


@pytest.mark.parametrize(
    ("wanted", "live", "is_same"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {}, False),
        ({"cpu": "0.5"}, {"cpu": "500m"}, True),
        ({"emptyDir": {}}, {}, True),
        ({"env": [{"name": "A", "value": ""}]}, {"env": [{"name": "A"}]}, True),
        ({"env": [{"name": "A"}]}, {"env": [{"name": "B"}, {"name": "A"}]}, True),
        ({"env": [{"name": "A"}]}, {"env": [{"name": "B"}]}, False),
        ({"command": ["a", "b"]}, {"command": ["a", "b", "c"]}, False),
        ({"paused": False}, {}, True),
        ({"paused": False}, {"paused": True}, False),
        ({"minReadySeconds": 0}, {}, True),
        ({"automountServiceAccountToken": False}, {}, False),
    ],
    ids=[
        "more",
        "other",
        "less",
        "quantity",
        "empty",
        "blank",
        "item",
        "no-item",
        "atomic",
        "left-out-false",
        "true",
        "left-out-zero",
        "true-when-absent",
    ],
)
def test_drift(wanted: dict[str, Any], live: dict[str, Any], is_same: bool) -> None:
    annotation = {"annotations": {"serving.octavo.dev/applied-hash": "h"}}
    assert (
        is_applied({"metadata": annotation, "spec": wanted}, {"metadata": annotation, "spec": live})
        is is_same
    )


_SPECS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(
            [{"uri": "hf://a/b"}, {"uri": "pvc://c/d"}, {"uri": "s3://bucket/x"}, {"uri": "bad"}]
        ),
        "replicas": st.one_of(st.none(), st.integers(0, 3)),
        "scaling": st.one_of(st.none(), st.just({"maxReplicas": 4})),
        "parallelism": st.sampled_from([{}, {"tensor": 2}, {"tensor": "Auto"}]),
        "accelerator": st.sampled_from([{}, {"resource": "none"}, {"product": "H100"}]),
        "engine": st.sampled_from([{}, {"lora": {}}, {"maxModelLen": 64}]),
        "monitoring": st.sampled_from([{}, {"podMonitor": False}]),
        "image": st.sampled_from([None, "mine:1"]),
        "template": st.sampled_from(
            [
                {},
                {"spec": {"containers": [{"name": "worker", "tty": True}]}},
                {"spec": {"containers": [{"name": "worker", "$patch": "delete"}]}},
            ]
        ),
    }
)
DISTURBED = (SERVICE_ACCOUNT, SERVICE, DEPLOYMENT, POD_DISRUPTION_BUDGET, POD_MONITOR)
_EDITS = st.lists(
    st.tuples(
        st.integers(0, 4), st.sampled_from(["spec", "labels", "hash", "delete", "orphan", "status"])
    ),
    max_size=4,
)


async def _disturb(world: World, edits: list[tuple[int, str]]) -> None:
    """Other people's doings: fields changed, marks removed, objects deleted or orphaned."""
    for index, what in edits:
        kind = DISTURBED[index]
        found = (await world.store.list_objects(kind, "models", {})).items
        for live in found:
            name = live["metadata"]["name"]
            patches: dict[str, Mapping[str, Any]] = {
                "spec": {"spec": {"selector": {"a": "b"}, "replicas": 9, "odd": 1}},
                "labels": {"metadata": {"labels": None}},
                "hash": {"metadata": {"annotations": None}},
                "orphan": {"metadata": {"ownerReferences": None}},
                "status": {"status": {"replicas": 3, "readyReplicas": 2}},
            }
            if what == "delete":
                await world.store.delete(kind, "models", name)
            else:
                subresource = "status" if what == "status" else ""
                await world.store.merge(
                    kind, "models", name, patches[what], subresource=subresource
                )


@settings(max_examples=120, deadline=None)
@given(first=_SPECS, second=_SPECS, edits=_EDITS)
async def test_plan_comes_to_an_end_from_anywhere(
    first: dict[str, Any], second: dict[str, Any], edits: list[tuple[int, str]]
) -> None:
    world = World(inference_service(), frozenset({POD_MONITOR}))
    world.resource = inference_service(**first)
    await world.settle()
    await _disturb(world, edits)
    world.resource = inference_service(**second)
    service = await world.settle(image="worker:2", now=LATER)
    assert len(conditions(service)) == 7
    found = conditions(service)
    unplanned = {"InvalidSpec", "NotImplementedYet", "NameConflict", "Inspecting"}
    # Pods of an earlier spec may serve while this one is looked at.
    if unplanned & {found[name][1] for name in ("Ready", "Progressing", "ModelReady")}:
        return
    names = {kind_of(child).kind for child in (await world.observe()).children}
    wants_monitor = second["monitoring"].get("podMonitor", True)
    assert ("PodMonitor" in names) == wants_monitor
    assert {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"} <= names

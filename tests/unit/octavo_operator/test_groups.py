"""Replicas that span nodes: groups of pods as a LeaderWorkerSet, where the cluster has the kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes_validate import validate

from inference_services import condition_message, conditions, inference_service
from inspections import H100, gpu_node, inspected_pod
from model_shapes import LLAMA_405B, QWEN_06B
from octavo_operator.errors import NotFoundError, ResourceError
from octavo_operator.labels import (
    ANNOTATION_APPLIED_HASH,
    ANNOTATION_POD_TEMPLATE,
    selector_labels,
)
from octavo_operator.manifests.digest import canonical_json
from octavo_operator.manifests.kinds import (
    DEPLOYMENT,
    HORIZONTAL_POD_AUTOSCALER,
    LEADER_WORKER_SET,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Kind,
)
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.reconcile.rendering import render_service
from octavo_operator.resources.engine import OWNED_FLAGS
from planner_world import World, unschedulable, worker_of

GOLDEN = Path(__file__).with_name("golden")
TWO_NODES = {"tensor": 8, "pipeline": 2, "nodes": 2}
WITH_GROUPS = frozenset({LEADER_WORKER_SET})
AVAILABLE = [{"type": "Available", "status": "True", "reason": "AllGroupsReady"}]


def spanning(**spec: Any) -> dict[str, Any]:
    return inference_service(parallelism=TWO_NODES, **spec)


async def groups(world: World) -> LiveObject:
    return await world.store.get(LEADER_WORKER_SET, "models", "chat")


async def is_there(world: World, kind: Kind) -> bool:
    try:
        await world.store.get(kind, "models", "chat")
    except NotFoundError:
        return False
    return True


async def report_groups(world: World, total: int, ready: int, updated: int | None = None) -> None:
    """Be the LeaderWorkerSet controller."""
    status = {
        "observedGeneration": (await groups(world))["metadata"]["generation"],
        "replicas": total,
        "readyReplicas": ready,
        "updatedReplicas": total if updated is None else updated,
        "conditions": AVAILABLE if ready == total else [],
    }
    await world.store.write_status(LEADER_WORKER_SET, "models", "chat", status, None)


def rendered() -> list[dict[str, Any]]:
    service = yaml.safe_load((GOLDEN / "groups.service.yaml").read_text())
    manifests = [dict(manifest) for manifest in render_service(service, "worker:1")]
    for manifest in manifests:
        annotations = dict(manifest["metadata"]["annotations"])
        annotations.pop(ANNOTATION_POD_TEMPLATE, None)
        manifest["metadata"] = {**manifest["metadata"], "annotations": annotations}
    return manifests


def test_manifests_of_groups_are_exactly_these() -> None:
    expected = list(yaml.safe_load_all((GOLDEN / "groups.manifests.yaml").read_text()))
    assert rendered() == expected


@pytest.mark.parametrize("template", ["leaderTemplate", "workerTemplate"])
def test_pods_of_groups_are_valid(template: str) -> None:
    (group,) = (item for item in rendered() if item["kind"] == "LeaderWorkerSet")
    pod = group["spec"]["leaderWorkerTemplate"][template]
    metadata = {**pod["metadata"], "name": "pod"}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]}
    validate(manifest, "1.37", strict=True)


async def test_only_the_leader_of_a_group_is_sent_requests() -> None:
    world = World(spanning(), WITH_GROUPS)
    await world.settle()
    template = (await groups(world))["spec"]["leaderWorkerTemplate"]
    selector = (await world.store.get(SERVICE, "models", "chat"))["spec"]["selector"]
    assert selector == selector_labels("chat")
    leader, follower = template["leaderTemplate"], template["workerTemplate"]
    assert selector.items() <= leader["metadata"]["labels"].items()
    assert not selector.items() <= follower["metadata"]["labels"].items()
    (worker,) = follower["spec"]["containers"]
    assert not {"ports", "readinessProbe", "startupProbe", "livenessProbe"} & worker.keys()
    command = leader["spec"]["containers"][0]["command"]
    assert worker["command"] == [*command, "--headless"]
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    policy = (await world.store.get(NETWORK_POLICY, "models", "chat"))["spec"]
    both = {"matchLabels": {"serving.octavo.dev/service": "chat"}}
    assert policy["podSelector"] == both
    assert {"from": [{"podSelector": both}]} in policy["ingress"]
    budget = (await world.store.get(POD_DISRUPTION_BUDGET, "models", "chat"))["spec"]
    assert budget["selector"]["matchExpressions"][0]["values"] == ["inference", "follower"]


async def test_every_flag_of_a_group_is_the_operators_own() -> None:
    world = World(spanning(), WITH_GROUPS)
    await world.settle()
    template = (await groups(world))["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    command = template["spec"]["containers"][0]["command"]
    assert {word for word in command if word.startswith("--")} <= OWNED_FLAGS
    rank = command.index("--node-rank")
    assert command[rank : rank + 4] == [
        "--node-rank",
        "$(LWS_WORKER_INDEX)",
        "--master-addr",
        "$(LWS_LEADER_ADDRESS)",
    ]


@pytest.mark.parametrize(("replicas", "longest"), [(1, 50), (9, 50), (10, 49), (1000, 47)], ids=str)
def test_name_of_groups_leaves_room_for_the_label_of_their_followers(
    replicas: int, longest: int
) -> None:
    """A StatefulSet for each group, and a surge of one: the last group of ten has number 10."""
    service = spanning(replicas=replicas)
    service["metadata"]["name"] = "x" * longest
    assert render_service(service, "worker:1")
    service["metadata"]["name"] += "x"
    with pytest.raises(ResourceError, match=f"use at most {longest}, or keep a replica on one"):
        render_service(service, "worker:1")
    service["spec"]["parallelism"] = {"tensor": 8}
    assert render_service(service, "worker:1")


async def test_stages_within_a_node_share_one_pod() -> None:
    world = World(inference_service(parallelism={"tensor": 2, "pipeline": 2}))
    await world.settle()
    worker = worker_of(await world.deployment())
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert worker["command"][9:13] == [
        "--tensor-parallel-size",
        "2",
        "--pipeline-parallel-size",
        "2",
    ]
    assert "/dev/shm" in [mount["mountPath"] for mount in worker["volumeMounts"]]


async def test_without_the_kind_nothing_is_made_and_it_is_said_what_to_install() -> None:
    world = World(spanning())
    assert (await world.step()).applies == ()
    service = await world.settle()
    for kind in ("WorkloadReady", "Ready", "Progressing"):
        assert conditions(service)[kind] == ("False", "LeaderWorkerSetMissing")
    assert "https://lws.sigs.k8s.io" in condition_message(service, "Ready")
    later = World(spanning(), WITH_GROUPS)
    await later.settle()
    assert await is_there(later, LEADER_WORKER_SET)


async def test_auto_spans_nodes_when_one_does_not_hold_the_model() -> None:
    resource = inference_service(parallelism={"tensor": "Auto"}, engine={"maxModelLen": 8192})
    world = World(resource, WITH_GROUPS)
    world.nodes = (gpu_node(H100, name="a"), gpu_node(H100, name="b"))
    world.companions = (inspected_pod(resource, LLAMA_405B),)
    service = await world.settle()
    placement = service["status"]["placement"]
    assert (placement["tensor"], placement["pipeline"], placement["nodes"]) == (8, 2, 2)
    template = (await groups(world))["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 2
    assert not await is_there(world, DEPLOYMENT)
    assert "16 × NVIDIA-H100-80GB-HBM3 (tensor 8 × pipeline 2 on 2 nodes)" in (
        condition_message(service, "PlacementReady")
    )
    before = (await groups(world))["spec"]
    world.nodes, world.companions = (gpu_node(H100, 1),), ()
    await world.settle(image="worker:9")
    assert (await groups(world))["spec"] == before


async def test_conditions_follow_the_groups() -> None:
    world = World(spanning(replicas=2), WITH_GROUPS)
    created = await world.settle()
    assert conditions(created)["Ready"] == ("False", "PodsStarting")
    await report_groups(world, total=2, ready=1)
    half = await world.settle()
    assert conditions(half)["Ready"] == ("True", "Serving")
    assert conditions(half)["WorkloadReady"] == ("False", "PodsStarting")
    await report_groups(world, total=2, ready=2)
    done = await world.settle()
    assert conditions(done)["Progressing"] == ("False", "Complete")
    assert done["status"]["summary"]["replicas"] == "2/2"
    found = condition_message(done, "FeaturesReady")
    assert "the worker of this version refuses to split a model (tensor 8, pipeline 2)" in found


async def test_group_that_is_lost_is_not_told_as_a_rollout() -> None:
    """The controller then says nothing of the rollout that is done."""
    world = World(spanning(replicas=2), WITH_GROUPS)
    await world.settle()
    await report_groups(world, total=2, ready=2)
    await world.settle()
    await report_groups(world, total=2, ready=1)
    assert conditions(await world.settle())["Progressing"] == ("True", "PodsStarting")
    world.resource = spanning(replicas=2, engine={"maxModelLen": 64})
    assert conditions(await world.settle())["Progressing"] == ("True", "RollingOut")
    await report_groups(world, total=2, ready=1, updated=1)
    assert conditions(await world.settle())["Progressing"] == ("True", "RollingOut")


async def test_pause_holds_every_group_back() -> None:
    world = World(spanning(replicas=3), WITH_GROUPS)
    await world.settle()
    strategy = (await groups(world))["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]
    assert strategy == {"maxSurge": 1, "maxUnavailable": 0, "partition": 0}
    world.resource = spanning(replicas=3, rollout={"paused": True})
    await world.settle()
    strategy = (await groups(world))["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]
    assert strategy["partition"] == 3


async def test_groups_are_scaled_as_groups() -> None:
    world = World(spanning(replicas=None, scaling={"maxReplicas": 4}), WITH_GROUPS)
    await world.settle()
    assert "replicas" not in (await groups(world))["spec"]
    autoscaler = await world.store.get(HORIZONTAL_POD_AUTOSCALER, "models", "chat")
    assert autoscaler["spec"]["scaleTargetRef"] == {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "name": "chat",
    }


async def test_number_of_groups_survives_the_change_to_an_autoscaler() -> None:
    world = World(spanning(replicas=3), WITH_GROUPS)
    await world.settle()
    world.resource = spanning(replicas=None, scaling={"maxReplicas": 4})
    await world.settle()
    assert (await groups(world))["spec"]["replicas"] == 3


async def test_single_pods_serve_until_the_groups_do() -> None:
    world = World(inference_service(), WITH_GROUPS)
    await world.settle()
    await world.all_ready()
    world.resource = spanning()
    await world.settle()
    assert await is_there(world, DEPLOYMENT)
    await report_groups(world, total=1, ready=0)
    await world.settle()
    assert await is_there(world, DEPLOYMENT)
    await report_groups(world, total=1, ready=1)
    await world.settle()
    assert not await is_there(world, DEPLOYMENT)
    world.resource = inference_service()
    await world.settle()
    assert await is_there(world, LEADER_WORKER_SET)
    await world.all_ready()
    await world.settle()
    assert not await is_there(world, LEADER_WORKER_SET)


@pytest.mark.parametrize(("choice", "stays"), [("Replace", False), ("Wait", True)])
async def test_single_pods_give_way_where_there_is_no_room(choice: str, stays: bool) -> None:
    world = World(inference_service(), WITH_GROUPS)
    await world.settle()
    await world.all_ready()
    world.resource = spanning(rollout={"whenNoSpareGPU": choice})
    follower = dict(unschedulable("0/2 nodes are available: 2 Insufficient nvidia.com/gpu."))
    follower["metadata"] = {
        **follower["metadata"],
        "labels": {"app.kubernetes.io/component": "follower"},
    }
    world.companions = (follower,)
    service = await world.settle()
    assert await is_there(world, DEPLOYMENT) is stays
    assert conditions(service)["WorkloadReady"] == ("False", "InsufficientGPU")
    assert "needs 8 nvidia.com/gpu on one node" in condition_message(service, "WorkloadReady")


async def test_a_newer_operator_leaves_followers_as_they_are() -> None:
    """What pods of a group are is remembered whole, however they would be rendered today."""
    world = World(spanning(), WITH_GROUPS)
    await world.settle()
    live = await groups(world)
    template = live["spec"]["leaderWorkerTemplate"]
    older = {
        **template["leaderTemplate"],
        "follower": {**template["workerTemplate"], "metadata": {"labels": {"made-by": "older"}}},
    }
    marks = {ANNOTATION_POD_TEMPLATE: canonical_json(older), ANNOTATION_APPLIED_HASH: None}
    patch = {"metadata": {"annotations": marks}}
    await world.store.merge(LEADER_WORKER_SET, "models", "chat", patch)
    service = await world.settle()
    kept = (await groups(world))["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    assert kept["metadata"]["labels"]["made-by"] == "older"
    assert conditions(service)["UpgradeAvailable"] == ("True", "NewerTemplate")


_PARALLELISM = st.sampled_from([{}, {"tensor": 2}, TWO_NODES, {"tensor": "Auto"}])
_SHAPES = st.sampled_from([None, QWEN_06B, LLAMA_405B])


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(_PARALLELISM, _SHAPES, st.booleans()), min_size=1, max_size=4))
async def test_moves_between_pods_and_groups_come_to_an_end(
    steps: list[tuple[dict[str, Any], Any, bool]],
) -> None:
    world = World(inference_service(), WITH_GROUPS)
    world.nodes = (gpu_node(H100, name="a"), gpu_node(H100, name="b"))
    for parallelism, shape, is_ready in steps:
        world.resource = inference_service(parallelism=parallelism, engine={"maxModelLen": 8192})
        found = (inspected_pod(world.resource, shape),) if shape is not None else ()
        world.companions = found
        service = await world.settle()
        assert len(conditions(service)) == 7
        if not is_ready:
            continue
        if await is_there(world, LEADER_WORKER_SET):
            await report_groups(world, total=1, ready=1)
        if await is_there(world, DEPLOYMENT):
            await world.all_ready()
        service = await world.settle()
        if conditions(service)["PlacementReady"][0] == "True":
            present = [await is_there(world, kind) for kind in (DEPLOYMENT, LEADER_WORKER_SET)]
            assert sum(present) == 1

"""From what is known of model and nodes to pods: looked at once, placed once, refused in time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_services import condition_message, conditions, inference_service
from inspections import H100, L4, failed_inspection, gpu_node, inspected_pod
from model_shapes import LLAMA_8B, LLAMA_70B, LLAMA_405B, QWEN_06B, QWEN_32B
from octavo_operator.cluster.node_reader import NodeReader
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import NotFoundError
from octavo_operator.labels import ANNOTATION_PLACEMENT
from octavo_operator.manifests.kinds import DEPLOYMENT, JOB, SERVICE_ACCOUNT, kind_of
from octavo_operator.placement.model_shape import ModelShape
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.reconcile.placing import LOOK_AGAIN_S
from octavo_operator.reconcile.plan import plan
from planner_world import NOW, World, worker_of

NODES = (gpu_node(L4, 1), gpu_node(H100, 8))


def auto(**engine: Any) -> dict[str, Any]:
    return inference_service(parallelism={"tensor": "Auto"}, engine={"maxModelLen": 8192, **engine})


def number(tensor: int, **engine: Any) -> dict[str, Any]:
    return inference_service(parallelism={"tensor": tensor}, engine={"maxModelLen": 8192, **engine})


def world_of(
    resource: dict[str, Any],
    shape: ModelShape | None = None,
    nodes: tuple[LiveObject, ...] | None = NODES,
) -> World:
    """`shape`: what the inspection has found; None while it has found nothing."""
    world = World(resource)
    world.nodes = nodes
    world.companions = (inspected_pod(resource, shape),) if shape is not None else ()
    return world


async def jobs(world: World) -> list[LiveObject]:
    return list((await world.store.list_objects(JOB, "models", {})).items)


async def has_deployment(world: World) -> bool:
    try:
        await world.deployment()
    except NotFoundError:
        return False
    return True


async def gpus_of(world: World) -> tuple[str, dict[str, str]]:
    """GPUs that a pod asks for, and its node selector."""
    live = await world.deployment()
    limits = worker_of(live)["resources"]["limits"]
    return limits["nvidia.com/gpu"], live["spec"]["template"]["spec"].get("nodeSelector", {})


@pytest.mark.parametrize("levels", [300, 900, 980, 4000])
@pytest.mark.parametrize("form", ["{}", '{{"dtype": {}}}', '{{"num_layers": {}}}'])
async def test_report_that_is_nested_too_deeply_is_none(form: str, levels: int) -> None:
    """It took every pass over the service along."""
    world = world_of(auto(), LLAMA_8B)
    text = form.format("[" * levels + "]" * levels)
    (pod,) = world.companions
    (container,) = pod["status"]["containerStatuses"]
    container["state"]["terminated"]["message"] = text
    service = await world.settle()
    assert conditions(service)["PlacementReady"] == ("Unknown", "Inspecting")


async def test_tolerations_of_the_overlay_count_as_the_accelerators_do() -> None:
    taint = {"key": "team", "value": "a", "effect": "NoSchedule"}
    closed = {**gpu_node(L4, 1), "spec": {"taints": [taint]}}
    store = ObjectStore()
    for one in (closed, {**gpu_node(H100, 8, "open")}):
        await store.create(one)
    reader = NodeReader(store)
    await reader.read()
    for tolerations, product in [([], H100), ([{"key": "team", "value": "a"}], L4), (["x"], H100)]:
        resource = auto()
        resource["spec"]["template"] = {"spec": {"tolerations": tolerations}}
        world = world_of(resource, QWEN_06B, reader.recent())
        service = await world.settle()
        assert service["status"]["placement"]["product"] == product


async def test_auto_first_looks_at_the_model_and_makes_no_pods_meanwhile() -> None:
    world = world_of(auto())
    service = await world.settle()
    (job,) = await jobs(world)
    assert job["spec"]["template"]["spec"]["containers"][0]["command"][:3] == [
        "octavo",
        "inspect",
        "org/name",
    ]
    assert [kind_of(child) for child in (await world.observe()).children] == [SERVICE_ACCOUNT, JOB]
    found = conditions(service)
    assert found["PlacementReady"] == ("Unknown", "Inspecting")
    assert found["Ready"] == ("False", "Inspecting")
    assert found["Progressing"] == ("True", "Inspecting")


async def test_what_was_found_is_kept_in_the_status_and_looked_at_once() -> None:
    world = world_of(auto(), LLAMA_70B)
    service = await world.settle()
    assert await gpus_of(world) == ("2", {"nvidia.com/gpu.product": H100})
    assert service["status"]["placement"] == {
        "tensor": 2,
        "pipeline": 1,
        "nodes": 1,
        "product": H100,
    }
    assert service["status"]["model"]["uri"] == "hf://org/name"
    assert service["status"]["model"]["numLayers"] == 80
    assert conditions(service)["PlacementReady"] == ("True", "Fits")
    assert "2 × NVIDIA-H100-80GB-HBM3: each GPU holds" in (
        condition_message(service, "PlacementReady")
    )
    assert await jobs(world) == []
    # The Job's pods are gone with it, and a change of length needs no other look.
    world.companions = ()
    world.resource = auto(maxModelLen=16384)
    await world.settle()
    assert await jobs(world) == []
    assert (await gpus_of(world))[0] == "2"


async def test_container_that_somebody_puts_beside_the_inspection_says_nothing_of_the_model() -> (
    None
):
    world = world_of(auto(), LLAMA_70B)
    (pod,) = world.companions
    proxy = {"name": "istio-proxy", "state": {"terminated": {"exitCode": 0, "message": "bye"}}}
    statuses = [proxy, *pod["status"]["containerStatuses"]]
    world.companions = ({**pod, "status": {**pod["status"], "containerStatuses": statuses}},)
    await world.settle()
    assert await gpus_of(world) == ("2", {"nvidia.com/gpu.product": H100})


async def test_what_was_found_is_not_let_go_before_the_status_has_it() -> None:
    """The write of the status may fail after the pods have been made."""
    world = world_of(auto())
    await world.settle()
    world.companions = (inspected_pod(world.resource, LLAMA_70B),)
    (job,) = await jobs(world)
    half = plan(await world.observe(), "worker:1", NOW)
    assert half.deletes == ()
    assert "Job" not in [apply.manifest["kind"] for apply in half.applies]
    for apply in half.applies:
        await world.store.apply(apply.manifest, apply.manager)
    assert await has_deployment(world)
    again = plan(await world.observe(), "worker:1", NOW)
    assert (again.applies, again.deletes) == ((), ())
    assert await jobs(world) == [job]
    assert again.status is not None
    assert again.status["model"]["numLayers"] == 80


async def test_another_model_is_looked_at_while_the_old_one_serves() -> None:
    world = world_of(auto(), LLAMA_8B)
    await world.settle()
    await world.all_ready()
    before = (await world.deployment())["spec"]["template"]
    world.resource = auto()
    world.resource["spec"]["model"] = {"uri": "hf://org/other"}
    service = await world.settle()
    assert (await world.deployment())["spec"]["template"] == before
    assert len(await jobs(world)) == 1
    found = conditions(service)
    assert (found["Ready"], found["Progressing"]) == (
        ("True", "Serving"),
        ("True", "Inspecting"),
    )
    assert "model" not in service["status"]
    world.companions = (inspected_pod(world.resource, QWEN_32B),)
    await world.settle()
    assert worker_of(await world.deployment())["command"][2] == "org/other"
    assert (await gpus_of(world))[0] == "1"


async def test_neither_new_nodes_nor_a_lost_status_move_a_running_model() -> None:
    world = world_of(auto(), LLAMA_70B)
    await world.settle()
    await world.all_ready()
    before = await world.deployment()
    for nodes in ((gpu_node(H100, 1),), (), None, (gpu_node(L4, 8), *NODES)):
        world.nodes, world.companions = nodes, ()
        live = await world.observe()
        await world.store.write_status(
            kind_of(live.resource), "models", "chat", {"model": None, "conditions": None}, None
        )
        await world.settle(image="worker:9")
        assert (await world.deployment())["spec"] == before["spec"]
        assert await jobs(world) == []


async def test_change_of_another_field_keeps_the_placement() -> None:
    world = world_of(auto(), LLAMA_70B)
    await world.settle()
    world.nodes = (gpu_node(L4, 8),)
    world.resource["spec"]["template"] = {"spec": {"priorityClassName": "high"}}
    await world.settle()
    assert await gpus_of(world) == ("2", {"nvidia.com/gpu.product": H100})
    world.resource["spec"]["engine"]["maxModelLen"] = 4096
    await world.settle()
    assert await gpus_of(world) == ("8", {"nvidia.com/gpu.product": L4})


async def test_pods_that_an_earlier_operator_made_for_auto_stay() -> None:
    world = world_of(auto(), QWEN_06B, (gpu_node(L4, 1),))
    await world.settle()
    annotation = {"metadata": {"annotations": {ANNOTATION_PLACEMENT: None}}}
    await world.store.merge(DEPLOYMENT, "models", "chat", annotation)
    before = (await world.deployment())["spec"]
    world.nodes, world.companions = (gpu_node(H100, 8),), ()
    service = await world.settle()
    assert (await world.deployment())["spec"] == before
    assert "as an earlier operator placed it" in condition_message(service, "PlacementReady")


async def test_what_fits_nowhere_gets_no_pods_and_the_sum_in_a_sentence() -> None:
    world = world_of(auto(), LLAMA_405B)
    first = await world.step()
    assert first.applies == ()
    service = await world.settle()
    assert not await has_deployment(world)
    for kind in ("PlacementReady", "Ready", "WorkloadReady", "ModelReady", "Progressing"):
        assert conditions(service)[kind] == ("False", "DoesNotFit")
    assert condition_message(service, "Ready").startswith(
        "hf://org/name does not fit even 8 × NVIDIA-H100-80GB-HBM3: each GPU holds "
    )
    assert "set engine.quantization: fp8" in condition_message(service, "Ready")
    world.nodes = (*NODES, gpu_node(H100, 8, "another"))
    assert (await world.step()).status is not None


async def test_what_does_not_fit_is_looked_at_again_as_nodes_may_come() -> None:
    world = world_of(auto(), QWEN_32B, (gpu_node(L4, 1),))
    await world.settle()
    assert (await world.step()).look_again_s == LOOK_AGAIN_S
    world.nodes = NODES
    await world.settle()
    assert await gpus_of(world) == ("1", {"nvidia.com/gpu.product": H100})


async def test_a_number_waits_for_nothing() -> None:
    world = world_of(number(2))
    service = await world.settle()
    assert (await gpus_of(world))[0] == "2"
    assert len(await jobs(world)) == 1
    assert conditions(service)["PlacementReady"] == ("Unknown", "Inspecting")
    assert conditions(service)["Ready"] == ("False", "PodsStarting")
    world.companions = (inspected_pod(world.resource, LLAMA_70B),)
    service = await world.settle()
    assert await jobs(world) == []
    # It may also land on the L4, so the user is told to say which.
    assert conditions(service)["PlacementReady"] == ("Unknown", "FitsSomeNodes")


async def test_a_number_that_cannot_work_takes_its_pods_back() -> None:
    world = world_of(number(3))
    await world.settle()
    assert await has_deployment(world)
    world.companions = (inspected_pod(world.resource, LLAMA_8B),)
    service = await world.settle()
    assert (await world.observe()).children == ()
    assert conditions(service)["Ready"] == ("False", "NotDivisible")
    assert "parallelism.tensor may be 1, 2, 4, 8, 16, 32" in condition_message(service, "Ready")
    world.resource = number(4)
    await world.settle()
    assert (await gpus_of(world))[0] == "4"


async def test_a_change_that_cannot_work_is_rolled_back_at_once() -> None:
    world = world_of(number(1), LLAMA_8B, (gpu_node(H100, 8),))
    await world.settle()
    await world.all_ready()
    await world.settle()
    before = (await world.deployment())["spec"]["template"]
    world.resource = number(1)
    world.resource["spec"]["model"] = {"uri": "hf://org/larger"}
    world.companions = ()
    await world.settle()
    assert (await world.deployment())["spec"]["template"] != before
    await world.report_pods(replicas=2, updatedReplicas=1, readyReplicas=1, availableReplicas=1)
    world.companions = (inspected_pod(world.resource, LLAMA_405B),)
    service = await world.settle()
    assert (await world.deployment())["spec"]["template"] == before
    assert conditions(service)["PlacementReady"] == ("False", "DoesNotFit")
    assert conditions(service)["Ready"] == ("True", "Serving")
    assert conditions(service)["Progressing"] == ("False", "RolledBack")
    assert "hf://org/larger does not fit" in condition_message(service, "Progressing")


async def test_pods_that_serve_are_not_doubted() -> None:
    world = world_of(number(1), None, (gpu_node(L4, 1),))
    await world.settle()
    await world.all_ready()
    await world.report_pods(
        replicas=1,
        updatedReplicas=1,
        readyReplicas=1,
        availableReplicas=1,
        conditions=[{"type": "Progressing", "reason": "NewReplicaSetAvailable"}],
    )
    world.companions = (inspected_pod(world.resource, LLAMA_70B),)
    service = await world.settle()
    assert conditions(service)["PlacementReady"] == ("True", "Proved")
    assert await jobs(world) == []
    # Also not when one of them is lost later.
    await world.report_pods(
        replicas=1,
        updatedReplicas=1,
        conditions=[{"type": "Progressing", "reason": "NewReplicaSetAvailable"}],
    )
    await world.settle()
    assert await has_deployment(world)


async def test_no_pods_at_all_prove_nothing_nor_does_the_first_one_while_it_loads() -> None:
    """A Deployment counts as rolled out with no pod, and goes on to when one is added."""
    rolled_out = [{"type": "Progressing", "reason": "NewReplicaSetAvailable"}]
    world = world_of(number(1), LLAMA_70B, None)
    for replicas in (0, 1):
        world.resource["spec"]["replicas"] = replicas
        await world.settle()
        await world.report_pods(replicas=replicas, updatedReplicas=replicas, conditions=rolled_out)
        service = await world.settle()
        assert conditions(service)["PlacementReady"] == ("Unknown", "GPUMemoryUnknown")
    await world.all_ready(1)
    assert conditions(await world.settle())["PlacementReady"] == ("True", "Proved")


async def test_one_gpu_whose_memory_nobody_knows_is_not_worth_a_look() -> None:
    world = world_of(inference_service(), None, None)
    service = await world.settle()
    assert await jobs(world) == []
    assert conditions(service)["PlacementReady"] == ("Unknown", "GPUMemoryUnknown")
    world.resource = inference_service(accelerator={"product": L4})
    await world.settle()
    assert len(await jobs(world)) == 1


@pytest.mark.parametrize("spec", [{"parallelism": {"tensor": "Auto"}}, {}], ids=["auto", "one"])
async def test_the_cpu_is_never_looked_at(spec: dict[str, Any]) -> None:
    world = world_of(inference_service(accelerator={"resource": "none"}, **spec))
    service = await world.settle()
    assert await jobs(world) == []
    assert await has_deployment(world)
    assert conditions(service)["PlacementReady"] == ("True", "NotNeeded")


@pytest.mark.parametrize(
    ("resource", "ready"),
    [(auto(), ("False", "InspectionFailed")), (number(2), ("False", "PodsStarting"))],
    ids=["auto", "number"],
)
async def test_a_look_that_fails_holds_up_auto_alone(
    resource: dict[str, Any], ready: tuple[str, str]
) -> None:
    world = world_of(copy.deepcopy(resource))
    world.companions = (
        failed_inspection(world.resource, "octavo: org/name is gated: set HF_TOKEN"),
    )
    service = await world.settle()
    found = conditions(service)
    assert (found["Ready"], found["PlacementReady"]) == (ready, ("Unknown", "InspectionFailed"))
    assert "org/name is gated: set HF_TOKEN" in condition_message(service, "PlacementReady")
    assert len(await jobs(world)) == 1


async def test_a_job_that_gave_up_says_why() -> None:
    world = world_of(auto())
    await world.settle()
    (job,) = await jobs(world)
    failed = {"type": "Failed", "status": "True", "message": "Job was active longer than 900 s"}
    await world.store.write_status(
        JOB, "models", job["metadata"]["name"], {"conditions": [failed]}, None
    )
    service = await world.settle()
    assert conditions(service)["Ready"] == ("False", "InspectionFailed")
    assert "active longer than" in condition_message(service, "Ready")


async def test_a_look_whose_report_is_gone_is_told_as_failed() -> None:
    """It was being looked at for as long as the Job stood there."""
    world = world_of(auto())
    await world.settle()
    (job,) = await jobs(world)
    name = job["metadata"]["name"]
    complete = {"conditions": [{"type": "Complete", "status": "True"}]}
    await world.store.write_status(JOB, "models", name, complete, None)
    service = await world.settle()
    assert conditions(service)["Ready"] == ("False", "InspectionFailed")
    assert "delete the Job for another look" in condition_message(service, "Ready")
    await world.store.delete(JOB, "models", name)
    service = await world.settle()
    assert conditions(service)["Ready"] == ("False", "Inspecting")


async def test_a_change_of_the_pod_makes_another_job_and_takes_the_old_one_away() -> None:
    world = world_of(auto())
    await world.settle()
    (before,) = await jobs(world)
    world.resource["spec"]["image"] = "other:1"
    await world.settle()
    (after,) = await jobs(world)
    assert before["metadata"]["name"] != after["metadata"]["name"]


def test_the_name_of_a_job_fits_even_for_the_longest_name() -> None:
    from octavo_operator.manifests.inspection_job import inspection_job
    from octavo_operator.manifests.pod_template import pod_template
    from octavo_operator.manifests.worker_command import NO_ADMIN_KEY
    from octavo_operator.resources.inference_service import parse_inference_service

    service = parse_inference_service(inference_service("c" * 52))
    job = inspection_job(service, pod_template(service, "w:1", NO_ADMIN_KEY), "key")
    assert len(job["metadata"]["name"]) == 63


_RESOURCES = st.builds(
    lambda tensor, uri, length, replicas: inference_service(
        model={"uri": uri},
        replicas=replicas,
        parallelism={"tensor": tensor},
        engine={"maxModelLen": length},
    ),
    st.sampled_from([1, 2, 3, "Auto"]),
    st.sampled_from(["hf://org/a", "hf://org/b"]),
    st.sampled_from([4096, 131072]),
    st.integers(0, 2),
)
_NODES = st.one_of(
    st.none(),
    st.lists(st.builds(gpu_node, st.sampled_from([H100, L4]), st.integers(1, 8)), max_size=3).map(
        tuple
    ),
)
_STEPS = st.lists(
    st.tuples(
        _RESOURCES,
        _NODES,
        st.sampled_from([None, QWEN_06B, LLAMA_8B, LLAMA_70B, LLAMA_405B]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=20, deadline=None)
@given(_STEPS)
async def test_any_state_of_a_placement_comes_to_an_end(
    steps: list[tuple[dict[str, Any], tuple[LiveObject, ...] | None, ModelShape | None, bool]],
) -> None:
    """Models, nodes, findings and readiness in any order: a few plans, then an empty one."""
    world = World(inference_service())
    for resource, nodes, shape, is_ready in steps:
        world.resource, world.nodes = resource, nodes
        world.companions = (inspected_pod(resource, shape),) if shape is not None else ()
        service = await world.settle()
        found = conditions(service)
        assert len(found) == 7
        has_pods = await has_deployment(world)
        if found["PlacementReady"][0] == "True":
            # This cluster has no LeaderWorkerSets, which a model over several nodes needs.
            assert has_pods or found["WorkloadReady"][1] == "LeaderWorkerSetMissing"
            assert "placement" in service["status"]
        if has_pods and is_ready:
            await world.all_ready(resource["spec"]["replicas"])
            await world.settle()

"""Rollouts from beginning to end, against a Deployment controller and a scheduler in memory."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from inference_services import condition_message, conditions, inference_service
from octavo_operator.labels import (
    ANNOTATION_APPLIED_HASH,
    ANNOTATION_GOOD_TEMPLATE,
    ANNOTATION_PINNED_IMAGE,
    ANNOTATION_PLACEMENT,
    ANNOTATION_POD_TEMPLATE,
    ANNOTATION_REFUSED_TEMPLATE,
    ANNOTATION_REPLICAS_OWNER,
    ANNOTATION_SERVED_TEMPLATE,
    ANNOTATION_STRIDE,
    ANNOTATION_TEMPLATE_INPUTS,
    ANNOTATION_UPGRADE,
    ANNOTATION_UPGRADED_BY,
)
from octavo_operator.local.deployment_controller import rollout_counts
from octavo_operator.manifests.kinds import DEPLOYMENT, INFERENCE_SERVICE, POD
from octavo_operator.reconcile.events import announcements
from octavo_operator.reconcile.live_object import LiveObject, annotations_of
from octavo_operator.reconcile.plan import plan
from planner_world import IMAGE, NOW, ControlledWorld, worker_of

BAD = "hf://org/bad"
KEY = (DEPLOYMENT, "models", "chat")


def is_bad(pod: Mapping[str, Any]) -> bool:
    return "org/bad" in pod["spec"]["containers"][0]["command"]


def models(pods: tuple[LiveObject, ...]) -> list[str]:
    return sorted(pod["spec"]["containers"][0]["command"][2] for pod in pods)


async def serving(**spec: Any) -> ControlledWorld:
    """A world at rest whose service runs; no pod is ever lost on the way from here."""
    gpus = spec.pop("num_gpus", None)
    world = ControlledWorld(inference_service(**spec), num_gpus=gpus, is_broken=is_bad)
    service = await world.come_to_rest()
    assert conditions(service)["Ready"] == ("True", "Serving")
    world.fewest_serving = 10**9
    return world


async def test_update_takes_no_pod_away_before_another_serves() -> None:
    world = await serving(replicas=3)
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    service = await world.come_to_rest()
    assert models(world.pods) == ["org/better"] * 3
    assert world.fewest_serving == 3
    assert conditions(service)["Progressing"] == ("False", "Complete")


async def test_conditions_of_a_rollout_go_one_way() -> None:
    """The operator notes in an annotation what has served, and a Deployment's annotations count in
    its generation."""
    world = ControlledWorld(inference_service(replicas=3))
    await world.come_to_rest()
    assert world.told_of("WorkloadReady") == ["PodsStarting", "AllPodsReady"]
    assert world.told_of("Progressing") == ["RollingOut", "Complete"]
    world.told.clear()
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    await world.come_to_rest()
    assert world.told_of("WorkloadReady") == ["AllPodsReady"]
    assert world.told_of("Progressing") == ["RollingOut", "Complete"]


async def test_conditions_of_a_rollout_in_place_go_one_way() -> None:
    """The Deployment's strategy is another one for as long as it lasts."""
    world = await serving(replicas=3, num_gpus=3)
    world.told.clear()
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    await world.come_to_rest()
    assert world.told_of("Progressing") == ["RollingOut", "Complete"]


async def test_conditions_of_a_change_that_is_rolled_back_go_one_way() -> None:
    world = await serving(replicas=2)
    world.told.clear()
    await _change_to_bad(world)
    assert world.told_of("Progressing") == ["RollingOut", "CrashLooping", "RolledBack"]
    world.told.clear()
    world.resource["spec"]["rollout"] = {"maxSurge": 2}
    await world.come_to_rest()
    assert world.told_of("Progressing") == ["RolledBack"]
    assert world.told_of("WorkloadReady") == ["AllPodsReady"]


@pytest.mark.parametrize(
    "rollout",
    [{"maxSurge": 2}, {"progressDeadlineSeconds": 60}, {"paused": True}],
    ids=lambda rollout: next(iter(rollout)),
)
@pytest.mark.parametrize("replicas", [0, 2])
async def test_change_of_how_pods_are_replaced_is_not_told_as_a_rollout(
    replicas: int, rollout: dict[str, Any]
) -> None:
    world = ControlledWorld(inference_service(replicas=replicas))
    before = conditions(await world.come_to_rest())
    world.told.clear()
    world.resource["spec"]["rollout"] = rollout
    await world.come_to_rest()
    for kind in ("Progressing", "WorkloadReady"):
        assert world.told_of(kind) == [before[kind][1]]


async def test_number_that_passes_to_an_autoscaler_is_not_told_as_a_rollout() -> None:
    world = await serving(replicas=2)
    world.told.clear()
    del world.resource["spec"]["replicas"]
    world.resource["spec"]["scaling"] = {"maxReplicas": 4}
    await world.come_to_rest()
    assert world.told_of("Progressing") == ["Complete"]
    assert world.told_of("WorkloadReady") == ["AllPodsReady"]


def events(world: ControlledWorld, before: LiveObject) -> list[str]:
    """Reasons of the events that went with the statuses that the world was told."""
    steps = itertools.pairwise([before["status"], *world.told])
    return [item.reason for old, new in steps for item in announcements(old, new)]


async def test_pod_that_is_lost_is_not_told_as_a_rollout() -> None:
    world = await serving(replicas=3)
    before = await world.service()
    world.told.clear()
    lost = world.pods[0]["metadata"]["name"]
    await world.store.delete(POD, "models", lost)
    world.pods = world.pods[1:]
    await world.report_pods(
        **rollout_counts(await world.deployment(), world.pods),
        conditions=[{"type": "Progressing", "reason": "NewReplicaSetAvailable"}],
    )
    missing = await world.settle()
    assert conditions(missing)["Progressing"] == ("True", "PodsStarting")
    assert "complete; 2 of 3 pods are available" in condition_message(missing, "Progressing")
    await world.come_to_rest()
    assert world.told_of("Progressing") == ["PodsStarting", "Complete"]
    assert events(world, before) == []


@pytest.mark.parametrize(
    ("number", "between"), [(4, "PodsStarting"), (2, "PodsStopping")], ids=["more", "fewer"]
)
async def test_other_number_of_pods_is_not_told_as_a_rollout(number: int, between: str) -> None:
    world = await serving(replicas=3)
    before = await world.service()
    world.told.clear()
    world.resource["spec"]["replicas"] = number
    await world.come_to_rest()
    assert world.told_of("Progressing") == [between, "Complete"]
    assert events(world, before) == []


@pytest.mark.parametrize("replicas", [0, 2])
async def test_annotation_of_somebody_elses_is_not_told_as_a_rollout(replicas: int) -> None:
    world = ControlledWorld(inference_service(replicas=replicas))
    await world.come_to_rest()
    world.told.clear()
    patch = {"metadata": {"annotations": {"example.org/team": "chat"}}}
    await world.store.merge(*KEY, patch)
    await world.come_to_rest()
    assert world.told == []


@pytest.mark.parametrize(
    ("replicas", "advice"),
    [(1, "set rollout.maxUnavailable: 1 to allow that"), (3, "by replacing pods in place")],
)
async def test_pod_without_a_place_is_told_with_its_advice_from_the_first(
    replicas: int, advice: str
) -> None:
    """Of the pod the operator knows before the Deployment's controller has counted it."""
    world = await serving(replicas=replicas, num_gpus=replicas)
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    await world.step()
    await world.let_pods_run()
    assert conditions(await world.settle())["WorkloadReady"] == ("False", "InsufficientGPU")
    assert advice in condition_message(await world.service(), "WorkloadReady")


async def test_pod_that_was_evicted_long_ago_makes_no_update_of_a_larger_number() -> None:
    world = await serving(replicas=2, num_gpus=2)
    evicted = copy.deepcopy(world.pods[0])
    evicted["metadata"] |= {"name": "chat-0", "labels": {"pod-template-hash": "old"}}
    evicted["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z"
    evicted["status"] = {"phase": "Failed", "reason": "Evicted"}
    world.resource["spec"]["replicas"] = 3
    await world.step()
    await world.let_pods_run()
    world.pods = (*world.pods, evicted)
    service = await world.settle()
    assert conditions(service)["WorkloadReady"] == ("False", "InsufficientGPU")
    assert "update" not in condition_message(service, "WorkloadReady")


async def test_update_without_a_spare_gpu_replaces_in_place() -> None:
    """LLMKube 192: with every GPU in use a surge pod never finds a place."""
    world = await serving(replicas=3, num_gpus=3)
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    notes = set()
    for _ in range(40):
        if not await world.turn():
            break
        service = await world.store.get(INFERENCE_SERVICE, "models", "chat")
        notes.add(condition_message(service, "Progressing"))
    assert models(world.pods) == ["org/better"] * 3
    assert world.fewest_serving == 2
    assert any("replacing pods in place" in note for note in notes)
    live = await world.deployment()
    assert live["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert ANNOTATION_STRIDE not in live["metadata"]["annotations"]


async def test_update_with_too_few_gpus_for_all_replicas_comes_through() -> None:
    world = ControlledWorld(inference_service(replicas=4), num_gpus=2)
    await world.come_to_rest()
    world.fewest_serving = 10**9
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    await world.come_to_rest()
    assert models(world.pods) == ["org/better"] * 4
    assert world.fewest_serving >= 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"replicas": 1, "num_gpus": 1}, "set rollout.maxUnavailable: 1 to allow that"),
        (
            {"replicas": 2, "num_gpus": 2, "rollout": {"whenNoSpareGPU": "Wait"}},
            "whenNoSpareGPU: Replace would",
        ),
    ],
    ids=["only-pod", "wait"],
)
async def test_update_that_must_wait_for_a_gpu_says_what_lacks(
    spec: dict[str, Any], words: str
) -> None:
    world = await serving(**spec)
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    service = await world.come_to_rest()
    assert conditions(service)["Ready"] == ("True", "Serving")
    assert conditions(service)["WorkloadReady"] == ("False", "InsufficientGPU")
    assert conditions(service)["Progressing"] == ("False", "InsufficientGPU")
    assert "needs 1 nvidia.com/gpu on one node" in condition_message(service, "WorkloadReady")
    assert words in condition_message(service, "WorkloadReady")
    # Waiting is no failure: nothing is rolled back, and a free GPU lets it go on.
    world.is_past_deadline = True
    await world.come_to_rest()
    assert world.num_gpus is not None
    world.num_gpus += 1
    world.is_past_deadline = False
    await world.come_to_rest()
    assert set(models(world.pods)) == {"org/better"}


async def test_outage_is_taken_when_it_is_allowed() -> None:
    rollout = {"maxSurge": 0, "maxUnavailable": 1}
    world = await serving(replicas=1, num_gpus=1, rollout=rollout)
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    await world.come_to_rest()
    assert models(world.pods) == ["org/better"]


async def _change_to_bad(world: ControlledWorld) -> LiveObject:
    world.resource["spec"]["model"] = {"uri": BAD}
    await world.come_to_rest()
    world.is_past_deadline = True
    await world.turn()
    await world.turn()
    world.is_past_deadline = False
    return await world.come_to_rest()


async def test_template_that_never_served_is_not_what_is_put_back() -> None:
    """With no pods every rollout is complete at once, and stays so when the first one is woken."""
    world = await serving(replicas=1)
    world.resource["spec"]["replicas"] = 0
    await world.come_to_rest()
    world.resource["spec"]["model"] = {"uri": BAD}
    await world.come_to_rest()
    world.resource["spec"]["replicas"] = 1
    await world.come_to_rest()
    world.resource["spec"]["model"] = {"uri": "hf://org/other"}
    await world.step()
    good = json.loads(
        (await world.deployment())["metadata"]["annotations"][ANNOTATION_GOOD_TEMPLATE]
    )
    assert models(({"spec": good["spec"]},)) == ["org/name"]


async def test_change_is_not_refused_for_the_deadline_of_the_one_before() -> None:
    """What the Deployment says is of its spec before until its controller has seen the new one."""
    world = await serving(replicas=2)
    world.resource["spec"]["model"] = {"uri": BAD}
    await world.turn()
    world.is_past_deadline = True
    await world.turn()
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    await world.step()
    await world.step()
    live = await world.deployment()
    assert ANNOTATION_REFUSED_TEMPLATE not in live["metadata"]["annotations"]
    assert worker_of(live)["command"][2] == "org/better"


async def test_bad_change_is_rolled_back_and_the_old_pods_stay() -> None:
    world = await serving(replicas=2)
    service = await _change_to_bad(world)
    assert world.fewest_serving == 2
    assert models(world.pods) == ["org/name"] * 2
    assert conditions(service)["Ready"] == ("True", "Serving")
    assert conditions(service)["WorkloadReady"] == ("True", "AllPodsReady")
    assert conditions(service)["Progressing"] == ("False", "RolledBack")
    assert "no such model" in condition_message(service, "Progressing")
    assert "annotation serving.octavo.dev/upgrade" in condition_message(service, "Progressing")


async def test_bad_change_without_a_spare_gpu_gives_the_gpu_back() -> None:
    world = await serving(replicas=2, num_gpus=2)
    await _change_to_bad(world)
    assert world.fewest_serving == 1
    assert models(world.pods) == ["org/name"] * 2


async def test_first_rollout_has_nothing_to_go_back_to() -> None:
    world = ControlledWorld(inference_service(model={"uri": BAD}), is_broken=is_bad)
    await world.come_to_rest()
    world.is_past_deadline = True
    service = await world.come_to_rest()
    assert conditions(service)["Progressing"] == ("False", "CrashLooping")
    assert conditions(service)["Ready"] == ("False", "CrashLooping")


async def test_next_change_goes_forward_again() -> None:
    world = await serving()
    await _change_to_bad(world)
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    service = await world.come_to_rest()
    assert models(world.pods) == ["org/better"]
    assert conditions(service)["Progressing"] == ("False", "Complete")
    annotations = (await world.deployment())["metadata"]["annotations"]
    assert ANNOTATION_REFUSED_TEMPLATE not in annotations


async def test_two_bad_changes_in_a_row_go_back_to_what_served() -> None:
    world = await serving()
    await _change_to_bad(world)
    world.resource["spec"]["engine"] = {"maxModelLen": 64}
    service = await _change_to_bad(world)
    assert models(world.pods) == ["org/name"]
    assert conditions(service)["Progressing"] == ("False", "RolledBack")


async def test_refused_change_is_tried_again_when_asked() -> None:
    world = await serving()
    await _change_to_bad(world)
    world.is_broken = lambda pod: False
    assert models(world.pods) == ["org/name"]
    world.resource["metadata"]["annotations"] = {ANNOTATION_UPGRADE: "again"}
    await world.come_to_rest()
    assert models(world.pods) == ["org/bad"]


async def test_pod_lost_after_the_rollout_is_no_reason_to_roll_back() -> None:
    world = await serving(replicas=2)
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    await world.come_to_rest()
    world.is_broken = lambda pod: True
    await world.store.delete(POD, "models", world.pods[0]["metadata"]["name"])
    world.is_past_deadline = True
    service = await world.come_to_rest()
    assert models(world.pods) == ["org/better"] * 2
    assert conditions(service)["Ready"] == ("True", "Serving")
    assert conditions(service)["WorkloadReady"] == ("False", "CrashLooping")


async def test_restart_by_hand_that_does_not_come_up_brings_no_earlier_model_back() -> None:
    """As by `kubectl rollout restart` while the model's source is down."""
    world = await serving(replicas=2)
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    await world.come_to_rest()
    world.is_broken = lambda pod: True
    restarted = {"kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z"}
    patch = {"spec": {"template": {"metadata": {"annotations": restarted}}}}
    await world.store.merge(*KEY, patch)
    await world.come_to_rest()
    world.is_past_deadline = True
    service = await world.come_to_rest()
    assert models(world.pods) == ["org/better"] * 3
    assert conditions(service)["Progressing"] == ("False", "CrashLooping")
    assert conditions(service)["Ready"] == ("True", "Serving")


async def test_new_operator_version_that_does_not_come_up_is_rolled_back() -> None:
    world = await serving()
    world.resource["metadata"]["annotations"] = {ANNOTATION_UPGRADE: "auto"}
    world.is_broken = lambda pod: pod["spec"]["containers"][0]["image"] == "worker:2"
    await world.come_to_rest("worker:2")
    world.is_past_deadline = True
    await world.turn("worker:2")
    world.is_past_deadline = False
    service = await world.come_to_rest("worker:2")
    assert worker_of(await world.deployment())["image"] == "worker:1"
    assert service["status"]["image"] == "worker:1"
    assert conditions(service)["Progressing"] == ("False", "RolledBack")


async def test_pause_holds_a_change_back_and_resume_lets_it_go() -> None:
    world = await serving(replicas=2)
    world.resource["spec"].update(rollout={"paused": True}, model={"uri": "hf://org/better"})
    service = await world.come_to_rest()
    assert models(world.pods) == ["org/name"] * 2
    assert conditions(service)["Progressing"] == ("False", "RolloutPaused")
    world.resource["spec"]["rollout"] = {"paused": False}
    await world.come_to_rest()
    assert models(world.pods) == ["org/better"] * 2


async def test_image_that_somebody_has_emptied_is_the_operators_own_again() -> None:
    world = await serving()
    patch = {"metadata": {"annotations": {ANNOTATION_PINNED_IMAGE: ""}}}
    await world.store.merge(*KEY, patch)
    world.resource["spec"]["model"] = {"uri": "hf://org/better"}
    service = await world.come_to_rest()
    assert conditions(service)["Progressing"] == ("False", "Complete")
    assert worker_of(await world.deployment())["image"] == IMAGE


def _nested(levels: int) -> list[str]:
    """JSON with lists so far inside each other, in all the forms that an annotation may have."""
    deep = "[" * levels + "]" * levels
    worker = f'{{"name": "worker", "image": "i", "x": {deep}}}'
    return [
        deep,
        f'{{"because": {deep}, "template": {deep}}}',
        f'{{"spec": {{"containers": [{worker}]}}}}',
        f'{{"metadata": {{"labels": {{}}}}, "spec": {{"containers": [{worker}]}}}}',
        f'{{"inputs": {deep}, "message": {deep}}}',
        "[" * levels,
    ]


@pytest.mark.parametrize("levels", [300, 900, 939, 5000])
async def test_annotation_that_is_nested_too_deeply_is_as_good_as_none(levels: int) -> None:
    world = await serving(replicas=2)
    await _change_to_bad(world)
    observed, memory = await world.observe(), annotations_of(await world.deployment())
    for name in memory:
        for text in _nested(levels):
            children = copy.deepcopy(observed.children)
            (live,) = (child for child in children if child["kind"] == "Deployment")
            live["metadata"]["annotations"][name] = text
            todo = plan(replace(observed, children=children), IMAGE, NOW)
            if todo.status is not None:
                assert conditions({"status": todo.status})["Ready"] == ("True", "Serving")


_TEXTS = st.sampled_from(["", "{", "[]", "null", '{"template": "x"}', "x:1", '{"spec": {}}'])
_MEMORY = st.dictionaries(
    st.sampled_from(
        [
            ANNOTATION_GOOD_TEMPLATE,
            ANNOTATION_REFUSED_TEMPLATE,
            ANNOTATION_STRIDE,
            ANNOTATION_POD_TEMPLATE,
            ANNOTATION_SERVED_TEMPLATE,
            ANNOTATION_TEMPLATE_INPUTS,
            ANNOTATION_PINNED_IMAGE,
            ANNOTATION_UPGRADED_BY,
            ANNOTATION_REPLICAS_OWNER,
            ANNOTATION_PLACEMENT,
            ANNOTATION_APPLIED_HASH,
        ]
    ),
    st.one_of(st.none(), _TEXTS),
)
_CHANGES = st.lists(
    st.sampled_from(
        [
            {"model": {"uri": BAD}},
            {"model": {"uri": "hf://org/better"}},
            {"replicas": 0},
            {"replicas": 3},
            {"rollout": {"paused": True}},
            {"rollout": {"whenNoSpareGPU": "Wait"}},
            {"rollout": {"maxSurge": 0, "maxUnavailable": 2}},
            {"rollout": {}},
        ]
    ),
    max_size=4,
)


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    num_gpus=st.sampled_from([None, 0, 1, 2, 3]),
    changes=_CHANGES,
    memory=_MEMORY,
    is_late=st.booleans(),
    num_turns=st.integers(0, 4),
)
async def test_any_state_of_a_rollout_comes_to_rest(
    num_gpus: int | None,
    changes: list[dict[str, Any]],
    memory: dict[str, str | None],
    is_late: bool,
    num_turns: int,
) -> None:
    """Changes at any moment, annotations lost or scribbled over, deadlines passed or not."""
    world = ControlledWorld(inference_service(replicas=2), num_gpus=num_gpus, is_broken=is_bad)
    for change in changes:
        for _ in range(num_turns):
            await world.turn()
        world.resource["spec"].update(change)
    await world.turn()
    await world.store.merge(*KEY, {"metadata": {"annotations": memory}})
    world.is_past_deadline = is_late
    service = await world.come_to_rest()
    assert len(conditions(service)) == 7
    world.is_past_deadline = False
    world.num_gpus = None
    world.is_broken = lambda pod: False
    world.resource["spec"].update(model={"uri": "hf://org/last"}, replicas=2, rollout={})
    await world.come_to_rest()
    assert models(world.pods) == ["org/last"] * 2

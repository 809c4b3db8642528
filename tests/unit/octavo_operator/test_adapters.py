"""LoRAAdapters in the pods of a service: what users complain about elsewhere, each as a story.

The reconciling core is the real one, against a cluster and workers in memory. Pods and containers
come and go as the test says; nothing is judged by the time it takes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import yaml

from adapter_stage import (
    KEY,
    AdapterStage,
    adapter_stage,
    counts,
    host_of,
    lora_adapter,
    states,
)
from crd_rules import admission_errors
from crd_schema import crd_of_kind
from eventually import eventually
from inference_services import condition_message, conditions, inference_service
from octavo_operator.labels import ANNOTATION_RESOLVE, FINALIZER
from octavo_operator.manifests.kinds import EVENT, INFERENCE_SERVICE, LORA_ADAPTER, POD

SQL = "hf://org/sql"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "cluster.work_queue.FIRST_RETRY_S",
        "cluster.work_queue.LONGEST_RETRY_S",
        "cluster.informer.FIRST_PAUSE_S",
        "cluster.informer.LONGEST_PAUSE_S",
        "cluster.adapter_keeper.SETTLE_S",
    ):
        monkeypatch.setattr(f"octavo_operator.{name}", 0.002)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads that may be tried again are, at once."""
    for name in ("FIRST_RETRY_S", "LONGEST_RETRY_S"):
        monkeypatch.setattr(f"octavo_operator.reconcile.adapter_facts.{name}", 0.0)


async def ready(stage: AdapterStage, name: str = "sql") -> tuple[str, str]:
    return conditions(await stage.adapter(name))["Ready"]


async def test_adapter_is_loaded_into_every_pod() -> None:
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        pods = await stage.serve(3)
        await stage.apply(lora_adapter(servedName="chat-sql"))
        await stage.settled()
        adapter = await stage.adapter()
        assert [stage.served(pod) for pod in pods] == [{"chat-sql": digest}] * 3
        assert conditions(adapter) == {
            "SourceResolved": ("True", "Resolved"),
            "Loaded": ("True", "Loaded"),
            "Ready": ("True", "Loaded"),
        }
        assert counts(adapter) == (3, 3, 0)
        assert adapter["status"]["resolvedDigest"] == digest
        assert adapter["status"]["resolvedRevision"] == "commit-v1"
        assert [entry["digest"] for entry in adapter["status"]["pods"]] == [digest] * 3
        assert adapter["metadata"]["finalizers"] == [FINALIZER]
        # One pod is asked for whatever there is, the others for those very files.
        first, *others = [body for _, body in stage.workers.loads]
        assert "digest" not in first
        assert {(body["digest"], body["revision"]) for body in others} == {(digest, "commit-v1")}
        assert stage.loads == [None] * 3


async def test_service_tells_of_its_adapters() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        await stage.serve(1)
        await stage.apply(lora_adapter(), lora_adapter("bad", "hf://org/none"))
        await stage.settled()
        status = (await stage.store.get(INFERENCE_SERVICE, *KEY))["status"]
        assert status["summary"]["adapters"] == "1/2"
        assert [(item["name"], item["ready"], item["reason"]) for item in status["adapters"]] == [
            ("bad", False, "SourceNotFound"),
            ("sql", True, "Loaded"),
        ]
        # The service's own passes leave it alone, and the other way round.
        version = (await stage.store.get(INFERENCE_SERVICE, *KEY))["metadata"]["resourceVersion"]
        stage.follower.queue.add(KEY)
        await stage.look()
        again = await stage.store.get(INFERENCE_SERVICE, *KEY)
        assert again["metadata"]["resourceVersion"] == version


async def test_container_that_restarts_in_place_gets_its_adapter_back() -> None:
    """aibrix 236: the pod is the same, so nobody noticed that its adapters were gone."""
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter())
        await stage.settled()
        before = (await stage.adapter())["status"]["pods"]
        await stage.start_container(pods[0])
        assert stage.served(pods[0]) == {}
        await stage.settled()
        assert stage.served(pods[0]) == {"sql": digest}
        after = (await stage.adapter())["status"]["pods"]
        changed = [
            (old["containerID"], new["containerID"])
            for old, new in zip(before, after, strict=True)
            if old != new
        ]
        assert len(changed) == 1
        assert changed[0][0] != changed[0][1]
        assert states(await stage.adapter()) == ["Loaded", "Loaded"]


async def test_worker_that_remembers_its_adapters_is_asked_for_nothing() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        stage.workers.loads.clear()
        await stage.start_container(pod, keep=True)
        await stage.settled()
        assert stage.workers.loads == []
        assert await ready(stage) == ("True", "Loaded")


async def test_status_never_says_loaded_where_nothing_is() -> None:
    """aibrix 235, 2624: Running though nothing is loaded. The pod's own list is the truth."""
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        stage.workers.sources.hanging.add(SQL)
        stage.workers.table(host_of(pod)).entries.clear()
        stage.follower.adapter_queue.add(KEY)

        async def is_loading() -> bool:
            return (await stage.adapter())["status"]["loaded"] == 0

        await eventually(is_loading)
        adapter = await stage.adapter()
        assert conditions(adapter)["Ready"] == ("False", "Loading")
        assert states(adapter) == ["Loading"]
        stage.workers.sources.hanging.clear()
        await stage.settled()
        assert stage.served(pod) == {"sql": digest}
        assert await ready(stage) == ("True", "Loaded")


async def test_failure_is_told_and_recovers_by_itself(quick_retries: None) -> None:
    """aibrix 1860: never Failed, and never recovers."""
    async with adapter_stage() as stage:
        stage.put(SQL, "unreachable")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter())

        async def is_failed() -> bool:
            return (await stage.adapter()).get("status", {}).get("failed") == 1

        await eventually(is_failed)
        adapter = await stage.adapter()
        assert conditions(adapter)["Ready"] == ("False", "SourceUnreachable")
        assert states(adapter) == ["Failed"]
        assert "the hub does not answer" in adapter["status"]["pods"][0]["message"]
        digest = stage.put(SQL, "v1")
        await stage.settled()
        assert stage.served(pod) == {"sql": digest}
        assert await ready(stage) == ("True", "Loaded")
        assert counts(await stage.adapter()) == (1, 1, 0)
        assert set(stage.loads) == {"SourceUnreachable", None}


PERMANENT = [
    ("refused", "AdapterRefused"),
    ("missing", "SourceNotFound"),
    ("forbidden", "SourceForbidden"),
]


@pytest.mark.parametrize(("kind", "reason"), PERMANENT, ids=[kind for kind, _ in PERMANENT])
async def test_permanent_failure_is_tried_on_one_pod_once(
    kind: str, reason: str, quick_retries: None
) -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, kind)
        await stage.serve(3)
        await stage.apply(lora_adapter())
        await stage.settled()
        for _ in range(5):
            await stage.look()
        assert len(stage.workers.loads) == 1
        adapter = await stage.adapter()
        assert conditions(adapter)["SourceResolved"] == ("False", reason)
        assert conditions(adapter)["Ready"] == ("False", reason)
        assert counts(adapter) == (3, 0, 1)
        # The user corrects the source, and asks for another look.
        stage.put(SQL, "v1")
        await stage.apply(lora_adapter(annotations={ANNOTATION_RESOLVE: "again"}))
        await stage.settled()
        assert await ready(stage) == ("True", "Loaded")


async def test_bad_adapters_keep_no_good_one_waiting(quick_retries: None) -> None:
    """gateway-api-inference-extension 584: one bad adapter blocks the others."""
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        (pod,) = await stage.serve(1)
        bad = {"refused": "a", "unreachable": "b", "broken": "c", "missing": "d"}
        for kind, name in bad.items():
            stage.put(f"hf://org/{name}", kind)
        stage.put("hf://org/slow", "v1")
        stage.workers.sources.hanging.add("hf://org/slow")
        await stage.apply(
            *(lora_adapter(name, f"hf://org/{name}") for name in (*bad.values(), "slow")),
            lora_adapter(),
        )

        async def is_ready() -> bool:
            return conditions(await stage.adapter()).get("Ready") == ("True", "Loaded")

        await eventually(is_ready)
        assert set(stage.served(pod)) == {"sql"}
        told = {name: (await ready(stage, name))[1] for name in (*bad.values(), "slow")}
        assert told == {
            "a": "AdapterRefused",
            "b": "SourceUnreachable",
            "c": "LoadFailed",
            "d": "SourceNotFound",
            "slow": "Resolving",
        }


async def test_pod_that_fails_leaves_the_others_loaded(quick_retries: None) -> None:
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        pods = await stage.serve(3)
        stage.workers.silent.add(host_of(pods[1]))
        await stage.apply(lora_adapter())
        await stage.settled()
        adapter = await stage.adapter()
        assert counts(adapter) == (3, 2, 0)
        assert conditions(adapter)["Loaded"] == ("False", "PodUnreachable")
        assert "timed out" in condition_message(adapter, "Loaded")
        assert sorted(states(adapter)) == ["Loaded", "Loaded", "Pending"]
        stage.workers.silent.clear()
        await stage.look()
        assert stage.served(pods[1]) == {"sql": digest}
        assert await ready(stage) == ("True", "Loaded")


async def test_glitch_of_a_pod_that_is_well_is_no_news() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        before = await stage.adapter()
        stage.workers.silent.add(host_of(pod))
        await stage.look()
        assert await stage.adapter() == before


async def test_pod_that_is_replaced_takes_the_adapter_along() -> None:
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter())
        await stage.settled()
        new = await stage.add_pod()
        await stage.remove_pod(pods[0])
        await stage.settled()
        assert stage.served(new) == {"sql": digest}
        adapter = await stage.adapter()
        assert counts(adapter) == (2, 2, 0)
        assert pods[0]["metadata"]["name"] not in {
            item["name"] for item in adapter["status"]["pods"]
        }


async def test_new_version_is_tried_on_one_pod_first() -> None:
    async with adapter_stage() as stage:
        old = stage.put("hf://org/sql", "v1")
        pods = await stage.serve(3)
        await stage.apply(lora_adapter(revision="v1"))
        await stage.settled()
        new = stage.put("hf://org/sql", "v2")
        stage.workers.sources.hanging.add("hf://org/sql")
        stage.workers.loads.clear()
        await stage.apply(lora_adapter(revision="v2"))
        await eventually(lambda: bool(stage.workers.loads))

        async def is_told() -> bool:
            return await ready(stage) == ("False", "Resolving")

        await eventually(is_told)
        assert [stage.served(pod) for pod in pods] == [{"sql": old}] * 3
        adapter = await stage.adapter()
        assert counts(adapter) == (3, 3, 0)
        assert adapter["status"]["resolvedDigest"] == old
        stage.workers.sources.hanging.clear()
        await stage.settled()
        assert [stage.served(pod) for pod in pods] == [{"sql": new}] * 3
        first, *others = [body for _, body in stage.workers.loads]
        assert (first["revision"], "digest" in first) == ("v2", False)
        assert [body["digest"] for body in others] == [new, new]
        assert (await stage.adapter())["status"]["resolvedDigest"] == new


async def test_pods_that_come_meanwhile_do_not_try_it_as_well() -> None:
    async with adapter_stage() as stage:
        await stage.serve(1)
        names = [f"a{number}" for number in range(5)]
        for name in names:
            stage.put(f"hf://org/{name}", name)
            stage.workers.sources.hanging.add(f"hf://org/{name}")
        await stage.apply(*(lora_adapter(name, f"hf://org/{name}") for name in names))
        await eventually(lambda: len(stage.workers.loads) == 5)
        pods = [await stage.add_pod() for _ in range(3)]

        async def are_seen() -> bool:
            return all([counts(await stage.adapter(name)) == (4, 0, 0) for name in names])

        await eventually(are_seen)
        # What that pass has begun, if anything, has reached a worker by then.
        await asyncio.sleep(0.05)
        assert len(stage.workers.loads) == 5
        stage.workers.sources.hanging.clear()
        await stage.settled()
        assert [set(stage.served(pod)) for pod in pods] == [set(names)] * 3


async def test_pod_counts_from_when_its_worker_has_been_ready() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        pod = await stage.add_pod(is_started=False)
        await stage.settled()
        assert counts(await stage.adapter()) == (1, 1, 0)
        await stage.start_container(pod)
        await stage.settled()
        assert counts(await stage.adapter()) == (2, 2, 0)


async def test_version_that_is_refused_reaches_one_pod_only_and_replaces_nothing() -> None:
    async with adapter_stage() as stage:
        old = stage.put("/adapters/v1", "v1")
        stage.put("/adapters/v2", "refused")
        pods = await stage.serve(3)
        await stage.apply(lora_adapter(uri="file:///adapters/v1"))
        await stage.settled()
        stage.workers.loads.clear()
        await stage.apply(lora_adapter(uri="file:///adapters/v2"))
        await stage.settled()
        assert len(stage.workers.loads) == 1
        assert [stage.served(pod) for pod in pods] == [{"sql": old}] * 3
        adapter = await stage.adapter()
        assert conditions(adapter)["Ready"] == ("False", "AdapterRefused")
        assert f"pods serve {old} on" in condition_message(adapter, "SourceResolved")
        assert counts(adapter) == (3, 3, 1)
        # A pod that comes now gets what the others have, not what was refused.
        added = await stage.add_pod()
        await stage.settled()
        assert stage.served(added) == {"sql": old}
        # Rolling back is setting the source back: nothing has to be loaded for it.
        stage.workers.loads.clear()
        await stage.apply(lora_adapter(uri="file:///adapters/v1"))
        await stage.settled()
        assert stage.workers.loads == []
        assert await ready(stage) == ("True", "Loaded")


async def test_source_that_moves_does_not_mix_versions(quick_retries: None) -> None:
    """A pod that comes later asks for the files that the others have, and no others."""
    async with adapter_stage() as stage:
        stage.put("/adapters/sql", "v1")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter(uri="file:///adapters/sql"))
        await stage.settled()
        new = stage.put("/adapters/sql", "v2")
        added = await stage.add_pod()
        await stage.settled()
        assert stage.served(added) == {}
        num_loads = len(stage.workers.loads)
        for _ in range(5):
            await stage.look()
        assert len(stage.workers.loads) == num_loads
        adapter = await stage.adapter()
        assert conditions(adapter)["Ready"] == ("False", "SourceChanged")
        assert new in condition_message(adapter, "Ready")
        await stage.apply(
            lora_adapter(uri="file:///adapters/sql", annotations={ANNOTATION_RESOLVE: "2"})
        )
        await stage.settled()
        assert [stage.served(each) for each in (pod, added)] == [{"sql": new}] * 2


async def test_digest_in_the_spec_pins_what_a_source_stands_for() -> None:
    """And is the way back to a version, whatever the source has become since."""
    async with adapter_stage() as stage:
        first = stage.put("/adapters/sql", "v1")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter(uri="file:///adapters/sql"))
        await stage.settled()
        second = stage.put("/adapters/sql", "v2")
        stage.workers.loads.clear()
        await stage.apply(lora_adapter(uri="file:///adapters/sql", digest=first))
        await stage.settled()
        # Every pod has it already; nobody takes what is there now.
        assert [stage.served(pod) for pod in pods] == [{"sql": first}] * 2
        assert await ready(stage) == ("True", "Loaded")
        added = await stage.add_pod()
        await stage.settled()
        assert await ready(stage) == ("False", "SourceChanged")
        assert stage.served(added) == {}
        await stage.apply(lora_adapter(uri="file:///adapters/sql", digest=second))
        await stage.settled()
        assert [stage.served(pod) for pod in (*pods, added)] == [{"sql": second}] * 3
        await stage.apply(lora_adapter(uri="file:///adapters/sql", digest=f"sha256:{'0' * 64}"))
        await stage.settled()
        assert await ready(stage) == ("False", "SourceChanged")
        assert [stage.served(pod) for pod in (*pods, added)] == [{"sql": second}] * 3


async def test_operator_that_is_restarted_goes_on_where_it_was() -> None:
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        pods = await stage.serve(3)
        stage.workers.sources.hanging.add(SQL)
        await stage.apply(lora_adapter())
        await eventually(lambda: bool(stage.workers.loads))
        await stage.restart_operator()
        stage.workers.sources.hanging.clear()
        await stage.settled()
        assert [stage.served(pod) for pod in pods] == [{"sql": digest}] * 3
        assert await ready(stage) == ("True", "Loaded")
        writes, stage.workers.loads[:] = stage.store.writes, []
        await stage.restart_operator()
        await stage.settled()
        assert (stage.store.writes, stage.workers.loads) == (writes, [])


async def test_placement_takes_so_many_pods_and_keeps_to_them() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        pods = await stage.serve(4)
        await stage.apply(lora_adapter(placement={"replicas": 2}))
        await stage.settled()
        holders = [pod for pod in pods if stage.served(pod)]
        assert len(holders) == 2
        assert counts(await stage.adapter()) == (2, 2, 0)
        for _ in range(6):
            pods.append(await stage.add_pod())
        await stage.settled()
        assert [pod for pod in pods if stage.served(pod)] == holders
        await stage.remove_pod(holders[0])
        await stage.settled()
        assert counts(await stage.adapter()) == (2, 2, 0)
        await stage.apply(lora_adapter(placement={"replicas": 1}))
        await stage.settled()
        assert counts(await stage.adapter()) == (1, 1, 0)
        left = (await stage.store.list_objects(POD, "models", {})).items
        assert sum(bool(stage.served(pod)) for pod in left) == 1


async def test_placement_beyond_the_pods_is_said() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        await stage.serve(2)
        await stage.apply(lora_adapter(placement={"replicas": 5}))
        await stage.settled()
        adapter = await stage.adapter()
        assert counts(adapter) == (2, 2, 0)
        assert "placement.replicas is 5" in condition_message(adapter, "Ready")


async def test_adapters_that_need_one_pod_are_spread_over_all() -> None:
    async with adapter_stage() as stage:
        pods = await stage.serve(3)
        names = [f"a{number}" for number in range(30)]
        for name in names:
            stage.put(f"hf://org/{name}", name)
        await stage.apply(
            *(lora_adapter(name, f"hf://org/{name}", placement={"replicas": 1}) for name in names)
        )
        await stage.settled()
        numbers = [len(stage.served(pod)) for pod in pods]
        assert sum(numbers) == 30
        assert min(numbers) >= 4


async def test_lazy_adapter_is_read_by_one_pod_and_known_to_the_others() -> None:
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        pods = await stage.serve(3)
        await stage.apply(lora_adapter(loadPolicy="Lazy"))
        await stage.settled()
        adapter = await stage.adapter()
        assert sorted(states(adapter)) == ["Known", "Known", "Loaded"]
        assert counts(adapter) == (3, 3, 0)
        assert await ready(stage) == ("True", "Loaded")
        lazy = [body for _, body in stage.workers.loads if body.get("lazy")]
        assert [body["digest"] for body in lazy] == [digest, digest]
        # Where a request has loaded it, it is replaced at once: its name alone would keep it.
        asked = next(pod for pod in pods if stage.served(pod) == {"sql": None})
        stage.workers.table(host_of(asked)).entries["sql"] |= {"state": "ready", "digest": digest}
        new = stage.put("hf://org/sql2", "v2")
        await stage.apply(lora_adapter(uri="hf://org/sql2", loadPolicy="Lazy"))
        await stage.settled()
        assert await ready(stage) == ("True", "Loaded")
        assert stage.served(asked) == {"sql": new}
        assert {digest for pod in pods for digest in stage.served(pod).values()} == {new, None}


async def test_lazy_adapter_that_a_request_could_not_load_is_told_until_one_can() -> None:
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter(loadPolicy="Lazy"))
        await stage.settled()
        known = next(pod for pod in pods if stage.served(pod) == {"sql": None})
        entry = stage.workers.table(host_of(known)).entries["sql"]
        entry |= {"state": "failed", "message": "the hub does not answer"}
        stage.workers.loads.clear()
        await stage.look()
        assert await ready(stage) == ("False", "LoadFailed")
        assert "the hub does not answer" in condition_message(await stage.adapter(), "Ready")
        assert stage.workers.loads == []
        assert stage.follower.adapter_queue._timers
        entry |= {"state": "ready", "message": None, "digest": digest}
        await stage.look()
        assert await ready(stage) == ("True", "Loaded")
        assert not stage.follower.adapter_queue._timers


async def test_pod_gets_no_traffic_before_its_eager_adapters_are_loaded() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        stage.put("hf://org/lazy", "v1")
        stage.workers.sources.hanging |= {SQL}
        await stage.serve(0)
        await stage.apply(lora_adapter(), lora_adapter("lazy", "hf://org/lazy", loadPolicy="Lazy"))
        await stage.settled()
        pod = await stage.add_pod(is_started=False)
        await stage.settled()
        assert pod["spec"]["readinessGates"] == [{"conditionType": "serving.octavo.dev/adapters"}]
        await stage.start_container(pod)
        await eventually(lambda: bool(stage.workers.loads))

        async def is_told() -> bool:
            return await stage.gate(pod) == "False"

        await eventually(is_told)
        stage.workers.sources.hanging.clear()
        await stage.settled()
        assert await stage.is_admitted(pod)


async def test_pod_without_adapters_is_let_in_at_once() -> None:
    async with adapter_stage() as stage:
        (pod,) = await stage.serve(1)
        await stage.settled()
        assert await stage.is_admitted(pod)


async def test_bad_adapter_keeps_no_pod_out_of_service() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "refused")
        await stage.serve(0)
        await stage.apply(
            lora_adapter(),
            lora_adapter("elsewhere", "pvc://nowhere/x"),
            lora_adapter("wrong", "pvc://../x"),
        )
        pods = [await stage.add_pod() for _ in range(2)]
        await stage.settled()
        assert [await stage.is_admitted(pod) for pod in pods] == [True, True]


async def test_source_that_is_down_keeps_a_pod_out_for_a_while_only() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "unreachable")
        await stage.serve(0)
        await stage.apply(lora_adapter())
        pod = await stage.add_pod()
        await stage.settled()
        assert not await stage.is_admitted(pod)
        await stage.pass_time(200)
        assert not await stage.is_admitted(pod)
        await stage.pass_time(100)
        assert await stage.is_admitted(pod)


async def test_pods_in_service_stay_there_whatever_adapters_do() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "unreachable")
        (pod,) = await stage.serve(1)
        await stage.settled()
        await stage.apply(lora_adapter())
        await stage.settled()
        assert await stage.is_admitted(pod)


async def test_deleted_adapter_is_unloaded_before_it_goes() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter())
        await stage.settled()
        await stage.delete()
        assert not await stage.is_gone()
        await stage.settled()
        assert await stage.is_gone()
        assert [stage.served(pod) for pod in pods] == [{}, {}]
        status = (await stage.store.get(INFERENCE_SERVICE, *KEY))["status"]
        assert (status["adapters"], status["summary"]["adapters"]) == ([], "0/0")


async def test_deletion_never_waits_for_pods_that_do_not_answer_longer_than_its_limit() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter())
        await stage.settled()
        stage.workers.silent.add(host_of(pods[0]))
        await stage.delete()
        await stage.settled()
        adapter = await stage.adapter()
        assert conditions(adapter)["Ready"] == ("False", "Deleting")
        assert (counts(adapter), states(adapter)) == ((0, 0, 0), ["Unloading"])
        await stage.pass_time(61)
        assert await stage.is_gone()
        events = (await stage.store.list_objects(EVENT, "models", {})).items
        (late,) = [event for event in events if event["reason"] == "UnloadTimedOut"]
        assert pods[0]["metadata"]["name"] in late["message"]
        # It is not forgotten there either.
        stage.workers.silent.clear()
        await stage.look()
        assert [stage.served(pod) for pod in pods] == [{}, {}]


async def test_deletion_does_not_hang_when_pods_or_service_are_gone() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter(), lora_adapter("other", SQL))
        await stage.settled()
        for pod in pods:
            await stage.remove_pod(pod)
        await stage.delete()
        await stage.settled()
        assert await stage.is_gone()
        await stage.store.delete(INFERENCE_SERVICE, *KEY)
        stage.follower.see_service(KEY)
        await stage.settled()
        assert await ready(stage, "other") == ("False", "ServiceNotFound")
        await stage.delete("other")
        await stage.settled()
        assert await stage.is_gone("other")


async def test_name_belongs_to_the_first_that_has_it() -> None:
    async with adapter_stage() as stage:
        first, second = stage.put("hf://org/a", "a"), stage.put("hf://org/b", "b")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter("a", "hf://org/a", servedName="sql"))
        await stage.pass_time(1)
        await stage.apply(lora_adapter("b", "hf://org/b", servedName="sql"))
        await stage.apply(lora_adapter("model", "hf://org/b", servedName="chat"))
        await stage.settled()
        assert stage.served(pod) == {"sql": first}
        assert await ready(stage, "b") == ("False", "DuplicateName")
        assert "LoRAAdapter a" in condition_message(await stage.adapter("b"), "Ready")
        assert await ready(stage, "model") == ("False", "DuplicateName")
        await stage.delete("a")
        await stage.settled()
        assert await stage.is_gone("a")
        assert stage.served(pod) == {"sql": second}
        assert await ready(stage, "b") == ("True", "Loaded")


async def test_what_no_adapter_asks_for_is_unloaded_save_what_the_command_brings() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        (pod,) = await stage.serve(1, args=["--lora-modules", "own=/adapters/own"])
        table = stage.workers.table(host_of(pod))
        for name in ("own", "stranger"):
            table.load({"lora_name": name, "lora_path": SQL})
        await stage.apply(lora_adapter())
        await stage.settled()
        assert set(stage.served(pod)) == {"own", "sql"}


async def test_service_that_is_not_there_or_takes_no_adapters_is_said() -> None:
    async with adapter_stage() as stage:
        await stage.apply(lora_adapter())
        await stage.settled()
        assert await ready(stage) == ("False", "ServiceNotFound")
        await stage.apply(inference_service())
        await stage.look()
        adapter = await stage.adapter()
        assert conditions(adapter)["Ready"] == ("False", "LoRANotEnabled")
        assert "spec.engine.lora: {}" in condition_message(adapter, "Ready")
        await stage.apply(inference_service(engine={"lora": {}}))
        await stage.settled()
        assert await ready(stage) == ("False", "WaitingForPods")
        service = await stage.store.get(INFERENCE_SERVICE, *KEY)
        sleeping = [{"type": "Ready", "status": "False", "reason": "Sleeping", "message": ""}]
        await stage.store.write_status(
            INFERENCE_SERVICE, *KEY, {**service["status"], "conditions": sleeping}, None
        )
        stage.follower.adapter_queue.add(KEY)
        await eventually(lambda: stage.follower.adapter_queue.is_idle)
        assert await ready(stage) == ("False", "ScaledToZero")


@pytest.mark.parametrize(
    ("source", "reason", "line"),
    [
        ({"uri": "pvc://adapters/sql"}, "SourceNotMounted", "[{pvc: {name: adapters}}]"),
        (
            {"uri": "oci://r.io/a/sql:v1"},
            "SourceNotMounted",
            '[{image: {reference: "r.io/a/sql:v1"}}]',
        ),
        (
            {"uri": "hf://org/sql", "secretRef": {"name": "key"}},
            "SecretNotInPods",
            "[{secretRef: {name: key}}]",
        ),
    ],
    ids=["pvc", "oci", "secret"],
)
async def test_what_pods_lack_is_told_with_what_to_add(
    source: dict[str, Any], reason: str, line: str
) -> None:
    async with adapter_stage() as stage:
        (old,) = await stage.serve(1)
        await stage.apply(lora_adapter(**source))
        await stage.settled()
        adapter = await stage.adapter()
        assert conditions(adapter)["SourceResolved"] == ("False", reason)
        assert conditions(adapter)["Ready"] == ("False", reason)
        message = condition_message(adapter, "Ready")
        assert f"spec.engine.lora.sources: {line}" in message
        assert stage.workers.loads == []
        # What the message says to add is what helps.
        sources = yaml.safe_load(message.rpartition("sources: ")[2])
        stage.put(SQL, "v1")
        (new,) = await stage.serve(1, lora={"sources": sources})
        mounts = [
            mount["mountPath"]
            for mount in new["spec"]["containers"][0]["volumeMounts"]
            if mount["mountPath"].startswith("/adapters/")
        ]
        for mount in mounts:
            stage.put(f"{mount}/sql" if "pvc" in source["uri"] else mount, "v1")
        await stage.settled()
        assert "sql" in stage.served(new)
        await stage.remove_pod(old)
        await stage.settled()
        assert await ready(stage) == ("True", "Loaded")


async def test_slip_in_a_spec_takes_nothing_away() -> None:
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        await stage.apply(lora_adapter(uri="ftp://x/y"))
        await stage.settled()
        assert await ready(stage) == ("False", "InvalidSpec")
        assert stage.served(pod) == {"sql": digest}
        await stage.apply(inference_service(model={"uri": "ftp://x"}, engine={"lora": {}}))
        await stage.apply(lora_adapter())
        await stage.settled()
        assert await ready(stage) == ("True", "Loaded")


async def test_user_is_told_by_events_what_has_become_of_an_adapter() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        stage.put("hf://org/wide", "refused")
        await stage.apply(lora_adapter(uri="hf://org/wide"))
        await stage.settled()
        await stage.look()
        events = (await stage.store.list_objects(EVENT, "models", {})).items
        told = [
            (event["type"], event["reason"])
            for event in events
            if event["involvedObject"]["kind"] == "LoRAAdapter"
        ]
        assert sorted(told) == [("Normal", "Loaded"), ("Warning", "AdapterRefused")]


async def test_every_status_fits_its_schema() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        stage.put("hf://org/down", "unreachable")
        pods = await stage.serve(2)
        names = {"down": "hf://org/down", "none": "hf://org/none", "claim": "pvc://nowhere/x"}
        await stage.apply(
            lora_adapter(revision="v1", annotations={ANNOTATION_RESOLVE: "1"}),
            lora_adapter("lazy", SQL, loadPolicy="Lazy"),
            lora_adapter("same", SQL, servedName="sql"),
            *(lora_adapter(name, uri) for name, uri in names.items()),
        )
        await stage.settled()
        stage.workers.silent.add(host_of(pods[0]))
        await stage.delete("lazy")
        await stage.settled()
        checked = []
        for kind in (LORA_ADAPTER, INFERENCE_SERVICE):
            for live in (await stage.store.list_objects(kind, None, {})).items:
                assert admission_errors(crd_of_kind(kind.kind), live) == []
                checked.append(live["metadata"]["name"])
        assert sorted(checked) == ["chat", "claim", "down", "lazy", "none", "same", "sql"]


async def test_service_without_pods_is_looked_at_until_it_sleeps() -> None:
    async with adapter_stage() as stage:
        await stage.apply(inference_service(engine={"lora": {}}), lora_adapter())
        await stage.settled()
        assert await ready(stage) == ("False", "WaitingForPods")
        assert stage.follower.adapter_queue._timers
        await stage.store.merge(
            INFERENCE_SERVICE,
            *KEY,
            {"status": {"conditions": [{"type": "Ready", "reason": "Sleeping"}]}},
            subresource="status",
        )
        await stage.look()
        assert await ready(stage) == ("False", "ScaledToZero")
        assert not stage.follower.adapter_queue._timers


async def test_nothing_is_written_or_loaded_while_nothing_changes() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        await stage.serve(2)
        await stage.apply(lora_adapter(), lora_adapter("bad", "hf://org/none"))
        await stage.settled()
        writes, loads = stage.store.writes, len(stage.workers.loads)
        for _ in range(20):
            await stage.pass_time(1)
        assert (stage.store.writes, len(stage.workers.loads)) == (writes, loads)

"""What is wanted is in every pod, whatever becomes of pods, containers and the operator."""

from __future__ import annotations

from adapter_stage import (
    SQL,
    adapter_stage,
    counts,
    lora_adapter,
    states,
)
from eventually import eventually
from inference_services import conditions
from octavo_operator.labels import FINALIZER


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
        assert await stage.ready() == ("True", "Loaded")


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
        assert await stage.ready() == ("True", "Loaded")
        writes, stage.workers.loads[:] = stage.store.writes, []
        await stage.restart_operator()
        await stage.settled()
        assert (stage.store.writes, stage.workers.loads) == (writes, [])


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

"""What nobody wants (any more) is unloaded, and a deletion waits for that no longer than it may."""

from __future__ import annotations

from adapter_stage import (
    KEY,
    SQL,
    adapter_stage,
    counts,
    host_of,
    lora_adapter,
    states,
)
from inference_services import conditions
from octavo_operator.labels import FINALIZER
from octavo_operator.manifests.kinds import EVENT, INFERENCE_SERVICE


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
        await stage.delete_service()
        assert await stage.ready("other") == ("False", "ServiceNotFound")
        await stage.delete("other")
        await stage.settled()
        assert await stage.is_gone("other")


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


async def test_adapter_is_held_only_while_there_are_pods_to_unload_it() -> None:
    """A namespace that is deleted loses its pods first, and then, in any order, its adapters and
    the rights of an operator that is confined to it: what is still held then is held for ever."""
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter())
        await stage.settled()
        await stage.start_container(pods[0])
        await stage.remove_pod(pods[1])
        await stage.settled()
        assert (await stage.adapter())["metadata"]["finalizers"] == [FINALIZER]
        stage.cluster.calls.clear()
        await stage.remove_pod(pods[0])
        await stage.settled()
        assert await stage.ready() == ("False", "WaitingForPods")
        assert (await stage.adapter())["metadata"]["finalizers"] == []
        # Neither write is in the way of the other.
        assert stage.cluster.calls["merge loraadapters"] == 1
        assert stage.cluster.calls["status loraadapters"] == 1
        await stage.add_pod()
        await stage.settled()
        assert (await stage.adapter())["metadata"]["finalizers"] == [FINALIZER]
        await stage.delete_service()
        assert (await stage.adapter())["metadata"]["finalizers"] == []

"""Stories that no manual tells: orders of events, deaths at a bad moment, clocks that err."""

from __future__ import annotations

from datetime import timedelta

import pytest

from adapter_stage import KEY, SQL, AdapterStage, adapter_stage, host_of, lora_adapter
from eventually import eventually


async def test_adapter_that_is_there_before_its_service_and_pods() -> None:
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        await stage.apply(lora_adapter())
        await stage.settled()
        assert await stage.ready() == ("False", "ServiceNotFound")
        (pod,) = await stage.serve(1)
        await stage.settled()
        assert await stage.ready() == ("True", "Loaded")
        assert stage.served(pod) == {"sql": digest}


async def test_second_of_a_name_takes_over_when_the_first_goes_and_the_name_never_does() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        other = stage.put("hf://org/other", "v2")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter("first", servedName="sql"))
        await stage.settled()
        stage.now += timedelta(seconds=1)
        await stage.apply(lora_adapter("second", "hf://org/other", servedName="sql"))
        await stage.settled()
        assert await stage.ready("second") == ("False", "DuplicateName")
        await stage.delete("first")
        await stage.settled()
        assert await stage.is_gone("first")
        assert await stage.ready("second") == ("True", "Loaded")
        assert stage.served(pod) == {"sql": other}
        assert stage.workers.calls["POST /v1/unload_lora_adapter"] == 0
        assert [entry["path"] for entry in await stage.wanted()] == ["hf://org/other"]


async def test_service_goes_first_and_its_adapter_after_it() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        await stage.delete_service()
        # The pod is still there, and not asked for anything; it goes with the service.
        assert await stage.ready() == ("False", "ServiceNotFound")
        assert "sql" in stage.served(pod)
        stage.workers.silent.add(host_of(pod))
        await stage.delete()
        await stage.settled()
        assert await stage.is_gone()


async def test_service_that_is_made_anew_gets_its_adapter_back() -> None:
    """Renamed and named back, say: another uid, other pods, a list of its own."""
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        await stage.delete_service()
        assert await stage.ready() == ("False", "ServiceNotFound")
        (new,) = await stage.serve(1)
        await stage.settled()
        assert stage.served(new) == {"sql": digest}
        assert await stage.ready() == ("True", "Loaded")
        assert [entry["name"] for entry in await stage.wanted()] == ["sql"]
        await stage.remove_pod(pod)
        await stage.settled()
        (entry,) = (await stage.adapter())["status"]["pods"]
        assert entry["uid"] == new["metadata"]["uid"]


async def test_source_that_changes_thrice_while_the_first_is_being_loaded() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter())
        await stage.settled()
        paths = [f"hf://org/v{number}" for number in (2, 3, 4)]
        digests = [stage.put(path, path) for path in paths]
        stage.workers.sources.hanging |= set(paths)
        stage.workers.loads.clear()
        for path in paths:
            await stage.apply(lora_adapter(uri=path))
            await eventually(lambda: bool(stage.workers.loads))
        stage.workers.sources.hanging.clear()
        await stage.settled()
        assert [stage.served(pod) for pod in pods] == [{"sql": digests[-1]}] * 2
        assert await stage.ready() == ("True", "Loaded")
        assert (await stage.adapter())["status"]["resolvedFrom"]["uri"] == paths[-1]
        # What was never wanted while nothing was under way has never been asked for.
        assert paths[1] not in {body["lora_path"] for _, body in stage.workers.loads}


async def test_load_that_outlasts_many_looks_is_made_once() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        await stage.serve(1)
        stage.workers.sources.hanging |= {SQL}
        await stage.apply(lora_adapter())
        await eventually(lambda: len(stage.workers.loads) == 1)
        for _ in range(20):
            stage.follower.adapter_queue.add(KEY)
            await eventually(lambda: stage.follower.adapter_queue.is_idle)
        assert len(stage.workers.loads) == 1
        stage.workers.sources.hanging.clear()
        await stage.settled()
        assert await stage.ready() == ("True", "Loaded")
        assert len(stage.workers.loads) == 1


@pytest.mark.parametrize("is_replaced", [False, True], ids=["container", "pod"])
async def test_pod_that_tries_a_new_version_dies_of_it(is_replaced: bool) -> None:
    async with adapter_stage() as stage:
        old, new = stage.put(SQL, "v1"), stage.put("hf://org/new", "v2")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter())
        await stage.settled()
        stage.workers.sources.hanging |= {"hf://org/new"}
        stage.workers.loads.clear()
        await stage.apply(lora_adapter(uri="hf://org/new"))
        await eventually(lambda: len(stage.workers.loads) == 1)
        (host,) = (host for host, _ in stage.workers.loads)
        (canary,) = (pod for pod in pods if host_of(pod) == host)
        if is_replaced:
            await stage.remove_pod(canary)
            pods = [next(pod for pod in pods if pod != canary), await stage.add_pod()]
        else:
            await stage.start_container(canary)
        # Until somebody has loaded the new one, all that is promised is the old.
        assert [entry["digest"] for entry in await stage.wanted()] == [old]
        stage.workers.sources.hanging.clear()
        await stage.settled()
        assert [stage.served(pod) for pod in pods] == [{"sql": new}] * 2
        assert await stage.ready() == ("True", "Loaded")


@pytest.mark.parametrize("num_writes", range(0, 10, 3))
async def test_operator_that_dies_between_two_writes(num_writes: int) -> None:
    """What the next one finds is half done; it ends in the same place."""
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        new = stage.put("hf://org/new", "v2")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter())
        await stage.settled()
        before = stage.store.writes
        await stage.apply(lora_adapter(uri="hf://org/new"))
        await eventually(
            lambda: stage.store.writes > before + num_writes or stage.follower.adapter_queue.is_idle
        )
        await stage.restart_operator()
        await stage.settled()
        assert [stage.served(pod) for pod in pods] == [{"sql": new}] * 2
        assert await stage.ready() == ("True", "Loaded")
        assert [entry["digest"] for entry in await stage.wanted()] == [new]


async def test_two_operators_at_once_come_to_one_end_and_to_rest() -> None:
    """As for some seconds, where the one that led was cut off and works on; neither undoes what the
    other has done, and they do not answer each other for ever."""
    async with adapter_stage() as stage, adapter_stage(beside=stage) as other:
        old, new = stage.put(SQL, "v1"), stage.put("hf://org/new", "v2")
        pods = await stage.serve(2)
        await _both_settled(stage, other)
        await stage.apply(lora_adapter(), lora_adapter("other"))
        other.follower.see_adapter(KEY)
        await _both_settled(stage, other)
        assert [stage.served(pod) for pod in pods] == [{"sql": old, "other": old}] * 2
        await stage.apply(lora_adapter(uri="hf://org/new"))
        other.follower.see_adapter(KEY)
        await stage.start_container(pods[0])
        await _both_settled(stage, other)
        assert [stage.served(pod) for pod in pods] == [{"sql": new, "other": old}] * 2
        await stage.delete("other")
        other.follower.see_adapter(KEY)
        await _both_settled(stage, other)
        assert await stage.is_gone("other")
        assert [stage.served(pod) for pod in pods] == [{"sql": new}] * 2
        assert await stage.ready() == ("True", "Loaded")
        writes = stage.store.writes
        for one in (stage, other, stage):
            one.follower.queue.add(KEY)
            await one.look()
        await _both_settled(stage, other)
        assert stage.store.writes == writes


async def _both_settled(*stages: AdapterStage) -> None:
    for stage in (*stages, *stages):
        await stage.settled()


@pytest.mark.parametrize("skew_h", [-5, 5], ids=["behind", "ahead"])
async def test_clock_that_is_wrong_neither_hurries_a_deletion_nor_holds_it(skew_h: int) -> None:
    """The server's clock says since when it is being deleted; the operator's says how long."""
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        stage.now -= timedelta(hours=skew_h)
        stage.workers.silent.add(host_of(pod))
        await stage.delete()
        stage.now += timedelta(hours=skew_h)
        await stage.settled()
        await stage.pass_time(50)
        assert not await stage.is_gone()
        await stage.pass_time(11)
        assert await stage.is_gone()


async def test_adapter_of_another_namespace_is_of_another_service() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        (pod,) = await stage.serve(1)
        foreign = lora_adapter()
        foreign["metadata"]["namespace"] = "others"
        await stage.apply(foreign)
        await stage.settled()
        assert stage.served(pod) == {}
        assert not [entry for entry in stage.follower.adapters.services() if entry == KEY]


async def test_annotation_that_comes_changes_and_goes_loads_nothing_anew() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        pods = await stage.serve(2)
        resolve = "serving.octavo.dev/resolve"
        for annotations in ({}, {resolve: "1"}, {resolve: "?\n="}, {}):
            await stage.apply(lora_adapter(annotations=annotations))
            await stage.settled()
            assert await stage.ready() == ("True", "Loaded")
        assert {stage.workers.table(host_of(pod)).generation for pod in pods} == {1}


async def test_pod_that_read_an_older_list_is_put_right_before_it_serves() -> None:
    """As where the list changed while the pod's model was being loaded."""
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        await stage.serve(1)
        await stage.apply(lora_adapter(), lora_adapter("gone"))
        await stage.settled()
        await stage.stop()
        pod = await stage.add_pod()
        new = stage.put("hf://org/new", "v2")
        stage.workers.sources.hanging |= {"hf://org/new"}
        await stage.apply(lora_adapter(uri="hf://org/new"))
        await stage.delete("gone")
        await stage.restart_operator()
        await eventually(lambda: bool(stage.workers.loads))
        assert not await stage.is_admitted(pod)
        stage.workers.sources.hanging.clear()
        await stage.settled()
        assert await stage.is_admitted(pod)
        assert stage.served(pod) == {"sql": new}

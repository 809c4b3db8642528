"""Which pods hold an adapter, and when: placement on N pods, and loading at the first request."""

from __future__ import annotations

from adapter_stage import (
    SQL,
    adapter_stage,
    counts,
    host_of,
    lora_adapter,
    states,
)
from eventually import eventually
from inference_services import condition_message
from octavo_operator.labels import ANNOTATION_RESOLVE


async def test_placement_takes_so_many_pods_and_keeps_to_them() -> None:
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        pods = await stage.serve(4)
        await stage.apply(lora_adapter(placement={"replicas": 2}))
        await stage.settled()
        holders = [pod for pod in pods if stage.served(pod) == {"sql": digest}]
        assert len(holders) == 2
        assert counts(await stage.adapter()) == (2, 2, 0)
        for _ in range(6):
            pods.append(await stage.add_pod())
        await stage.settled()
        assert [pod for pod in pods if stage.served(pod) == {"sql": digest}] == holders
        await stage.remove_pod(holders[0])
        await stage.settled()
        assert counts(await stage.adapter()) == (2, 2, 0)
        await stage.apply(lora_adapter(placement={"replicas": 1}))
        await stage.settled()
        assert counts(await stage.adapter()) == (1, 1, 0)


async def test_pods_that_do_not_hold_an_adapter_know_it_and_answer_for_it() -> None:
    """The Service leads requests to any pod."""
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        pods = await stage.serve(3)
        await stage.apply(lora_adapter(placement={"replicas": 1}))
        await stage.settled()
        (chosen,) = [pod for pod in pods if stage.served(pod)["sql"] == digest]
        others = [pod for pod in pods if pod is not chosen]
        assert [stage.served(pod) for pod in others] == [{"sql": None}] * 2
        pinned = [stage.workers.table(host_of(pod)).entries["sql"]["digest"] for pod in others]
        assert pinned == [digest] * 2

        # A request loads it into one of them: that is no reason to choose others, nor news.
        asked, other = others
        entry = stage.workers.table(host_of(asked)).entries["sql"]
        entry["state"] = "ready"
        await stage.add_pod()
        await stage.settled()
        (told,) = (await stage.adapter())["status"]["pods"]
        assert told["name"] == chosen["metadata"]["name"]

        # A version that replaces it gets everywhere, and takes the name from nobody.
        new = stage.put("hf://org/sql2", "v2")
        await stage.apply(lora_adapter(uri="hf://org/sql2", placement={"replicas": 1}))
        await stage.settled()
        assert stage.served(chosen) == stage.served(asked) == {"sql": new}
        assert stage.workers.table(host_of(other)).entries["sql"]["digest"] == new

        # What cannot be loaded there is told, though nothing that was asked for is amiss.
        entry = stage.workers.table(host_of(other)).entries["sql"]
        entry |= {"state": "failed", "message": "the hub does not answer"}
        await stage.look()
        assert await stage.ready() == ("True", "Loaded")
        assert counts(await stage.adapter()) == (1, 1, 1)
        assert sorted(states(await stage.adapter())) == ["Failed", "Loaded"]

        await stage.delete()
        await stage.settled()
        assert await stage.is_gone()
        assert [stage.served(pod) for pod in pods] == [{}] * 3


async def test_glitch_of_a_pod_that_holds_an_adapter_moves_it_nowhere() -> None:
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        pods = await stage.serve(4)
        await stage.apply(lora_adapter(placement={"replicas": 2}))
        await stage.settled()
        before = [stage.served(pod) for pod in pods]
        for pod in pods:
            if stage.served(pod)["sql"] == digest:
                stage.workers.silent.add(host_of(pod))
        await stage.look()
        assert [stage.served(pod) for pod in pods] == before
        assert counts(await stage.adapter()) == (2, 2, 0)


async def test_new_pod_serves_when_it_knows_what_it_does_not_hold() -> None:
    async with adapter_stage() as stage:
        for name in ("sql", "lazy"):
            stage.put(f"hf://org/{name}", name)
        await stage.serve(1)
        await stage.apply(
            lora_adapter(placement={"replicas": 1}),
            lora_adapter("lazy", "hf://org/lazy", loadPolicy="Lazy"),
        )
        await stage.settled()
        stage.workers.sources.hanging |= {"hf://org/sql", "hf://org/lazy"}
        stage.has_lists = False
        pod = await stage.add_pod()
        await eventually(lambda: len(stage.workers.loads) == 4)

        async def is_loading() -> bool:
            return await stage.ready() == ("False", "Loading")

        await eventually(is_loading)
        assert not await stage.is_admitted(pod)
        assert "1 other pod does not know its name" in condition_message(
            await stage.adapter(), "Ready"
        )
        stage.workers.sources.hanging.clear()
        await stage.settled()
        assert await stage.is_admitted(pod)
        assert await stage.ready() == ("True", "Loaded")
        assert stage.served(pod) == {"sql": None, "lazy": None}


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
        numbers = [sum(one is not None for one in stage.served(pod).values()) for pod in pods]
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
        assert await stage.ready() == ("True", "Loaded")
        lazy = [body for _, body in stage.workers.loads if body.get("lazy")]
        assert [body["digest"] for body in lazy] == [digest, digest]
        # Where a request has loaded it, it is replaced at once: its name alone would keep it.
        asked = next(pod for pod in pods if stage.served(pod) == {"sql": None})
        stage.workers.table(host_of(asked)).entries["sql"] |= {"state": "ready", "digest": digest}
        new = stage.put("hf://org/sql2", "v2")
        await stage.apply(lora_adapter(uri="hf://org/sql2", loadPolicy="Lazy"))
        await stage.settled()
        assert await stage.ready() == ("True", "Loaded")
        assert stage.served(asked) == {"sql": new}
        assert {digest for pod in pods for digest in stage.served(pod).values()} == {new, None}


async def test_pods_that_merely_know_an_adapter_are_told_of_another_version() -> None:
    """Also one where a request has failed for the old one."""
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        pods = await stage.serve(3)
        await stage.apply(lora_adapter(loadPolicy="Lazy"))
        await stage.settled()
        known = [pod for pod in pods if stage.served(pod) == {"sql": None}]
        stage.workers.table(host_of(known[0])).entries["sql"]["state"] = "failed"
        new = stage.put(SQL, "v2")
        stage.workers.loads.clear()
        annotations = {ANNOTATION_RESOLVE: "again"}
        await stage.apply(lora_adapter(loadPolicy="Lazy", annotations=annotations))
        await stage.settled()
        assert await stage.ready() == ("True", "Loaded")
        told = {host: body["digest"] for host, body in stage.workers.loads if body.get("lazy")}
        assert told == {host_of(pod): new for pod in known}
        assert sorted(states(await stage.adapter())) == ["Known", "Known", "Loaded"]


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
        assert await stage.ready() == ("False", "LoadFailed")
        assert "the hub does not answer" in condition_message(await stage.adapter(), "Ready")
        assert stage.workers.loads == []
        entry |= {"state": "ready", "message": None, "digest": digest}
        await stage.look()
        assert await stage.ready() == ("True", "Loaded")

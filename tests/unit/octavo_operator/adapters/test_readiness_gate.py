"""A pod gets traffic when its adapters are there, and is never kept out of service by a bad one."""

from __future__ import annotations

import asyncio

from adapter_stage import (
    KEY,
    SQL,
    adapter_stage,
    host_of,
    lora_adapter,
)
from eventually import eventually


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
        await stage.start_container(pod)
        await eventually(lambda: bool(stage.workers.loads))
        stage.follower.adapter_queue.add(KEY)
        await eventually(lambda: stage.workers.calls["GET /v1/adapters"] > 1)
        assert not await stage.is_admitted(pod)
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


async def test_source_that_is_down_keeps_a_pod_out_of_service() -> None:
    """For a while only: the pod itself knows how long."""
    async with adapter_stage() as stage:
        stage.put(SQL, "unreachable")
        await stage.serve(0)
        await stage.apply(lora_adapter())
        pod = await stage.add_pod()
        await stage.settled()
        assert not await stage.is_admitted(pod)
        (timer,) = stage.follower.adapter_queue._timers.values()
        assert timer.when() - asyncio.get_running_loop().time() <= 5.0
        stage.put(SQL, "v1")
        stage.workers.silent.add(host_of(pod))
        await stage.look()
        assert not await stage.is_admitted(pod)


async def test_pods_in_service_stay_there_whatever_adapters_do() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "unreachable")
        (pod,) = await stage.serve(1)
        await stage.settled()
        await stage.apply(lora_adapter())
        await stage.settled()
        assert await stage.is_admitted(pod)

"""The story of an adapter with a fault of the API at any call, and what hundreds of them cost."""

from __future__ import annotations

import os
from typing import Any

import pytest

from adapter_stage import KEY, AdapterStage, adapter_stage, lora_adapter, states
from eventually import eventually
from inference_services import conditions
from octavo_operator.errors import (
    ClusterError,
    ConflictError,
    ThrottledError,
    UnavailableError,
)
from octavo_operator.manifests.kinds import INFERENCE_SERVICE, LORA_ADAPTER, POD

IS_FULL = bool(os.environ.get("OCTAVO_TEST_FULL"))


async def _story(stage: AdapterStage) -> dict[str, Any]:
    """Load, replace, restart a container, delete one of two; what there is in the end."""
    stage.put("hf://org/sql", "v1")
    stage.put("hf://org/new", "v2")
    pods = await stage.serve(2)
    await stage.apply(lora_adapter(), lora_adapter("other"), lora_adapter("bad", "hf://org/none"))
    await stage.settled()
    await stage.start_container(pods[0])
    await stage.settled()
    await stage.apply(lora_adapter(uri="hf://org/new"))
    await stage.settled()
    await stage.delete("other")
    await stage.settled()
    assert await stage.is_gone("other")
    listed = await stage.store.list_objects(LORA_ADAPTER, None, {})
    return {
        "adapters": {
            item["metadata"]["name"]: (
                conditions(item),
                item["status"].get("resolvedDigest"),
                sorted(states(item)),
                item["metadata"]["finalizers"],
            )
            for item in listed.items
        },
        "service": (await stage.store.get(INFERENCE_SERVICE, *KEY))["status"]["adapters"],
        "wanted": await stage.wanted(),
        "served": [stage.served(pod) for pod in pods],
        "admitted": [await stage.is_admitted(pod) for pod in pods],
    }


_FAULTS = [
    ConflictError("conflict"),
    ThrottledError("slow down", retry_after_s=0.002),
    UnavailableError("timed out"),
]


@pytest.mark.parametrize("is_done_first", [False, True], ids=["refused", "answer-lost"])
@pytest.mark.parametrize("fault", _FAULTS, ids=lambda fault: type(fault).__name__)
async def test_fault_at_any_call_changes_nothing_in_the_end(
    fault: ClusterError, is_done_first: bool
) -> None:
    async with adapter_stage() as stage:
        stage.cluster.calls.clear()
        expected = await _story(stage)
        num_calls = stage.cluster.calls.total()
    assert expected["served"][0].keys() == {"sql"}
    stride = 1 if IS_FULL else 24
    offset = 0 if IS_FULL else 8 * _FAULTS.index(fault) + 4 * is_done_first
    for position in range(offset, num_calls + 1, stride):
        async with adapter_stage() as stage:
            stage.cluster.is_done_first = is_done_first
            stage.cluster.faults = [None] * position + [fault]
            assert await _story(stage) == expected, position


@pytest.mark.parametrize("fault", _FAULTS, ids=lambda fault: type(fault).__name__)
async def test_long_row_of_faults_is_waited_out(fault: ClusterError) -> None:
    """More than the attempts of a pass, and more than one pass."""
    async with adapter_stage() as stage:
        stage.put("hf://org/sql", "v1")
        (pod,) = await stage.serve(1)
        stage.cluster.faults = [fault] * 30
        await stage.apply(lora_adapter())
        await eventually(lambda: not stage.cluster.faults)
        await stage.settled()
        assert await stage.ready() == ("True", "Loaded")
        assert stage.served(pod).keys() == {"sql"}


NUM_ADAPTERS, NUM_PODS = 200, 3


async def test_two_hundred_adapters_cost_what_they_must() -> None:
    """Every pod loads every adapter once; writes go with changes, and calls with passes."""
    async with adapter_stage() as stage:
        pods = await stage.serve(NUM_PODS)
        await stage.settled()
        names = [f"a{number}" for number in range(NUM_ADAPTERS)]
        for name in names:
            stage.put(f"hf://org/{name}", name)
        stage.cluster.calls.clear()
        stage.workers.calls.clear()
        await stage.apply(*(lora_adapter(name, f"hf://org/{name}") for name in names))
        await stage.settled()
        calls, asked = dict(stage.cluster.calls), dict(stage.workers.calls)
        print(
            f"\n{calls}\n{asked}\nmost at a time in a pod: {max(stage.workers.most_open.values())}"
        )
        assert [len(stage.served(pod)) for pod in pods] == [NUM_ADAPTERS] * NUM_PODS
        assert asked["POST /v1/load_lora_adapter"] == NUM_ADAPTERS * NUM_PODS
        assert max(stage.workers.most_open.values()) <= 8
        assert calls["merge loraadapters"] == NUM_ADAPTERS
        passes = calls["list loraadapters"]
        assert asked["GET /v1/adapters"] == passes * NUM_PODS
        assert passes < NUM_ADAPTERS
        # Resolving, then loading in the others, then loaded: at most a write for each pod's news.
        assert calls["status loraadapters"] <= (2 + NUM_PODS) * NUM_ADAPTERS
        for adapter in (await stage.store.list_objects(LORA_ADAPTER, None, {})).items:
            assert conditions(adapter)["Ready"] == ("True", "Loaded")
        # A pod that comes while no operator runs has them all.
        assert len(await stage.wanted()) == NUM_ADAPTERS
        # One change costs one pass or few, and loads one adapter only.
        stage.cluster.calls.clear()
        stage.workers.calls.clear()
        stage.put("hf://org/other", "other")
        await stage.apply(lora_adapter("a7", "hf://org/other"))
        await stage.settled()
        assert stage.workers.calls["POST /v1/load_lora_adapter"] == NUM_PODS
        assert stage.cluster.calls["list loraadapters"] <= 8
        assert stage.cluster.calls["status loraadapters"] <= 4
        # At rest there is a look a minute, which reads and writes nothing.
        await stage.look()
        writes = stage.store.writes
        stage.cluster.calls.clear()
        stage.workers.calls.clear()
        await stage.look()
        assert stage.store.writes == writes
        assert stage.cluster.calls == {"get inferenceservices": 1, "list loraadapters": 1}
        assert stage.workers.calls == {"GET /v1/adapters": NUM_PODS}
        assert (await stage.store.list_objects(POD, None, {})).items

"""A failure is told, tried again where that can help, and harms no other pod or adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from adapter_stage import (
    SQL,
    adapter_stage,
    counts,
    host_of,
    lora_adapter,
    states,
)
from eventually import eventually
from fake_adapter_table import REFUSALS, AdapterTable, Answer
from inference_services import condition_message, conditions
from octavo_operator.labels import ANNOTATION_RESOLVE


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("unreachable", "SourceUnreachable"),
        ("late", "LoadTimedOut"),
        ("broken", "LoadFailed"),
    ],
)
async def test_failure_is_told_and_recovers_by_itself(
    kind: str, reason: str, quick_retries: None
) -> None:
    """aibrix 1860: never Failed, and never recovers."""
    async with adapter_stage() as stage:
        stage.put(SQL, kind)
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter())

        async def is_failed() -> bool:
            return (await stage.adapter()).get("status", {}).get("failed") == 1

        await eventually(is_failed)
        adapter = await stage.adapter()
        assert conditions(adapter)["Ready"] == ("False", reason)
        assert states(adapter) == ["Failed"]
        assert adapter["status"]["pods"][0]["message"] == REFUSALS[kind][2]
        digest = stage.put(SQL, "v1")
        await stage.settled()
        assert stage.served(pod) == {"sql": digest}
        assert await stage.ready() == ("True", "Loaded")
        assert counts(await stage.adapter()) == (1, 1, 0)
        assert set(stage.loads) == {reason, None}


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
        assert await stage.ready() == ("True", "Loaded")


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
        told = {name: (await stage.ready(name))[1] for name in (*bad.values(), "slow")}
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
        assert await stage.ready() == ("True", "Loaded")


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


async def test_pod_that_does_not_list_what_it_loads_is_asked_less_and_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each success had the next look, and so the next load, follow at once."""
    monkeypatch.setattr("octavo_operator.reconcile.adapter_facts.FIRST_RETRY_S", 0.05)
    async with adapter_stage() as stage:
        (pod,) = await stage.serve()
        stage.put(SQL, "v1")
        table = stage.workers.table(host_of(pod))

        def load(body: Mapping[str, Any]) -> Answer:
            answer = AdapterTable.load(table, body)
            table.entries.clear()
            return answer

        table.load = load  # type: ignore[method-assign]
        await stage.apply(lora_adapter())
        await eventually(lambda: len(stage.workers.loads) > 2)
        await stage.settled()
        assert await stage.ready() == ("False", "LoadFailed")
        assert "does not list it" in condition_message(await stage.adapter(), "Ready")


async def test_pod_that_lists_what_it_unloads_is_not_asked_without_a_pause() -> None:
    async with adapter_stage() as stage:
        (pod,) = await stage.serve()
        table = stage.workers.table(host_of(pod))
        table.want({"name": "stray", "path": SQL, "lazy": True})
        table.unload = lambda body: (200, {})  # type: ignore[method-assign]
        await stage.look()
        await stage.look()
        assert stage.workers.calls["POST /v1/unload_lora_adapter"] == 1

"""Status, events and remedies: what users read of their adapters is so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from adapter_stage import (
    KEY,
    SQL,
    adapter_stage,
    host_of,
    lora_adapter,
    states,
)
from crd_rules import admission_errors
from crd_schema import crd_of_kind
from eventually import eventually
from fake_adapter_table import digest_of
from inference_services import condition_message, conditions, inference_service
from octavo_operator.labels import ANNOTATION_RESOLVE
from octavo_operator.manifests.kinds import EVENT, INFERENCE_SERVICE, LORA_ADAPTER
from octavo_operator.reconcile.adapter_summary import summary_status
from octavo_operator.reconcile.observed import LiveObject


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
        assert await stage.ready() == ("True", "Loaded")


async def test_adapter_that_a_pod_could_not_read_again_is_told_and_put_right() -> None:
    """Its files are others by now, in the folder of a PersistentVolumeClaim, say."""
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter())
        await stage.settled()
        new = stage.put(SQL, "v2")
        entry = stage.workers.table(host_of(pods[0])).entries["sql"]
        entry |= {"state": "failed", "message": "no longer those that were loaded"}
        await stage.look()
        adapter = await stage.adapter()
        assert sorted(states(adapter)) == ["Failed", "Loaded"]
        assert await stage.ready() == ("False", "SourceChanged")
        assert new in condition_message(adapter, "Ready")
        # A request finds them as they were.
        stage.put(SQL, "v1")
        entry |= {"state": "ready", "message": None}
        await stage.look()
        assert await stage.ready() == ("True", "Loaded")
        assert [stage.served(pod) for pod in pods] == [{"sql": digest}] * 2


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
        assert await stage.ready("b") == ("False", "DuplicateName")
        assert "LoRAAdapter a" in condition_message(await stage.adapter("b"), "Ready")
        assert await stage.ready("model") == ("False", "DuplicateName")
        await stage.delete("a")
        await stage.settled()
        assert await stage.is_gone("a")
        assert stage.served(pod) == {"sql": second}
        assert await stage.ready("b") == ("True", "Loaded")


async def test_service_that_is_not_there_or_takes_no_adapters_is_said() -> None:
    async with adapter_stage() as stage:
        await stage.apply(lora_adapter())
        await stage.settled()
        assert await stage.ready() == ("False", "ServiceNotFound")
        await stage.apply(inference_service())
        await stage.look()
        adapter = await stage.adapter()
        assert conditions(adapter)["Ready"] == ("False", "LoRANotEnabled")
        assert "spec.engine.lora: {}" in condition_message(adapter, "Ready")
        await stage.apply(inference_service(engine={"lora": {"maxRank": 999}}))
        await stage.look()
        assert await stage.ready() == ("False", "ServiceInvalid")
        assert "maxRank" in condition_message(await stage.adapter(), "Ready")
        await stage.apply(inference_service(engine={"lora": {}}))
        await stage.settled()
        assert await stage.ready() == ("False", "WaitingForPods")
        service = await stage.store.get(INFERENCE_SERVICE, *KEY)
        sleeping = [{"type": "Ready", "status": "False", "reason": "Sleeping", "message": ""}]
        await stage.store.write_status(
            INFERENCE_SERVICE, *KEY, {**service["status"], "conditions": sleeping}, None
        )
        stage.follower.adapter_queue.add(KEY)
        await eventually(lambda: stage.follower.adapter_queue.is_idle)
        assert await stage.ready() == ("False", "ScaledToZero")


async def test_service_without_pods_is_looked_at_until_it_sleeps() -> None:
    async with adapter_stage() as stage:
        await stage.apply(inference_service(engine={"lora": {}}), lora_adapter())
        await stage.settled()
        assert await stage.ready() == ("False", "WaitingForPods")
        assert stage.follower.adapter_queue._timers
        await stage.store.merge(
            INFERENCE_SERVICE,
            *KEY,
            {"status": {"conditions": [{"type": "Ready", "reason": "Sleeping"}]}},
            subresource="status",
        )
        await stage.look()
        assert await stage.ready() == ("False", "ScaledToZero")
        assert not stage.follower.adapter_queue._timers


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
        assert await stage.ready() == ("True", "Loaded")


async def test_slip_in_a_spec_takes_nothing_away() -> None:
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        await stage.apply(lora_adapter(uri="ftp://x/y"))
        await stage.settled()
        assert await stage.ready() == ("False", "InvalidSpec")
        assert stage.served(pod) == {"sql": digest}
        await stage.apply(inference_service(model={"uri": "ftp://x"}, engine={"lora": {}}))
        await stage.apply(lora_adapter())
        await stage.settled()
        assert await stage.ready() == ("True", "Loaded")


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


def test_summary_of_very_many_adapters_fits_an_object_and_lists_what_is_wrong() -> None:
    def report(number: int) -> tuple[LiveObject, Mapping[str, Any]]:
        name = f"{'a' * 120}-{number:05}"
        status = "False" if number >= 9_900 else "True"
        ready = {"type": "Ready", "status": status, "reason": "SourceUnreachable"}
        told = {"conditions": [ready], "resolvedDigest": digest_of(name), "desired": 9, "loaded": 9}
        return lora_adapter(name), told

    summary = summary_status(map(report, range(10_000)))
    assert summary["summary"] == {"adapters": "9900/10000"}
    names = [entry["name"] for entry in summary["adapters"]]
    assert names == sorted(names)
    assert sum(not entry["ready"] for entry in summary["adapters"]) == 100
    assert len(json.dumps(summary)) < 300_000


async def test_metrics_are_of_the_status_that_was_written_last() -> None:
    """Which brings no other pass, so that they would lag until something else happens."""
    async with adapter_stage() as stage:

        async def shown() -> list[int]:
            assert [one["status"] for one in stage.follower.adapters.all_adapters()] == [
                (await stage.adapter())["status"]
            ]
            (one,) = stage.follower.adapters.all_adapters()
            return [one["status"][state] for state in ("desired", "loaded", "failed")]

        stage.put(SQL, "v1")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        assert await shown() == [1, 1, 0]
        await stage.remove_pod(pod)
        await stage.settled()
        assert await shown() == [0, 0, 0]
        await stage.delete()
        await stage.settled()
        assert stage.follower.adapters.all_adapters() == ()

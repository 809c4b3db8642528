"""While no operator runs, a new pod has by itself what the others have: the list that it reads."""

from __future__ import annotations

from typing import Any

import pytest

from adapter_stage import SQL, adapter_stage, host_of, lora_adapter
from eventually import eventually
from inference_services import conditions, inference_service
from octavo_operator.manifests.adapter_list import SIZE_LIMIT, WantedAdapter, adapter_list
from octavo_operator.manifests.kinds import CONFIG_MAP, DEPLOYMENT, INFERENCE_SERVICE
from octavo_operator.resources.inference_service import parse_inference_service

LIST = (CONFIG_MAP, "models", "chat-adapters")


async def test_pod_that_comes_while_no_operator_runs_has_its_adapters() -> None:
    async with adapter_stage() as stage:
        first, second = stage.put(SQL, "v1"), stage.put("hf://org/fr", "v2")
        stage.put("hf://org/lazy", "v3")
        await stage.serve(1)
        await stage.apply(
            lora_adapter(),
            lora_adapter("fr", "hf://org/fr"),
            lora_adapter("lazy", "hf://org/lazy", loadPolicy="Lazy"),
            lora_adapter("few", "hf://org/fr", placement={"replicas": 1}),
            lora_adapter("bad", "hf://org/none"),
        )
        await stage.settled()
        await stage.stop()
        pod = await stage.add_pod()
        assert stage.served(pod) == {"sql": first, "fr": second, "lazy": None, "few": None}
        await stage.restart_operator()
        stage.workers.loads.clear()
        await stage.settled()
        assert await stage.is_admitted(pod)
        assert all(host != host_of(pod) for host, _ in stage.workers.loads)


async def test_list_follows_the_adapters_and_restarts_no_pod() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        new = stage.put("hf://org/new", "v2")
        await stage.serve(1)
        template = (await stage.store.get(DEPLOYMENT, "models", "chat"))["spec"]["template"]
        await stage.apply(lora_adapter())
        await stage.settled()
        await stage.apply(lora_adapter(uri="hf://org/none"))
        await stage.settled()
        # A version that nobody could load is not what new pods shall have.
        ((entry),) = await stage.wanted()
        assert entry["path"] == SQL
        await stage.apply(lora_adapter(uri="hf://org/new"))
        await stage.settled()
        assert await stage.wanted() == [
            {"name": "sql", "path": "hf://org/new", "revision": "commit-v2", "digest": new}
        ]
        await stage.delete()
        await stage.settled()
        assert await stage.wanted() == []
        live = await stage.store.get(DEPLOYMENT, "models", "chat")
        assert live["spec"]["template"] == template


async def test_list_that_somebody_edits_is_put_right() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        right = await stage.wanted()
        await stage.store.merge(*LIST, {"data": {"wanted.json": "[]", "more": "x"}})
        await stage.settled()
        assert await stage.wanted() == right
        stage.cluster.calls.clear()
        await stage.look()
        assert not [call for call in stage.cluster.calls if call.startswith("merge")]
        await stage.store.delete(*LIST)
        await stage.settled()
        assert await stage.wanted() == right


async def test_list_without_its_labels_gets_them_back() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        before = await stage.store.get(*LIST)
        await stage.store.merge(*LIST, {"metadata": {"labels": None}})
        await stage.settled()
        after = await stage.store.get(*LIST)
        assert after["metadata"]["labels"] == before["metadata"]["labels"]
        assert after["metadata"]["uid"] == before["metadata"]["uid"]


async def test_list_of_somebody_else_is_left_alone_and_adapters_are_loaded_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such a name is a likely one for a ConfigMap that brings adapters."""
    foreign = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "chat-adapters", "namespace": "models"},
        "data": {"adapter_config.json": "{}"},
    }
    async with adapter_stage() as stage:
        digest = stage.put(SQL, "v1")
        await stage.store.create(foreign, "user")
        pods = await stage.serve(1)
        await stage.apply(lora_adapter())
        await eventually(lambda: stage.served(pods[0]) == {"sql": digest})
        await eventually(lambda: "ConfigMap chat-adapters exists and belongs to" in caplog.text)
        live = await stage.store.get(*LIST)
        assert live["data"] == foreign["data"]


async def test_somebody_elses_config_map_is_left_alone() -> None:
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        theirs: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "chat-adapters", "namespace": "models"},
            "data": {"mine": "yes"},
        }
        await stage.store.create(theirs)
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter())

        async def is_loaded() -> bool:
            found = conditions(await stage.adapter()).get("Ready")
            return found == ("True", "Loaded")

        await eventually(is_loaded)
        assert await stage.is_admitted(pod)
        assert (await stage.store.get(*LIST))["data"] == {"mine": "yes"}
        await stage.store.delete(*LIST)


async def test_list_of_a_service_of_the_same_name_that_is_gone_is_not_taken_over() -> None:
    """The garbage collector takes it away when it comes to it, and then there is a new one."""
    async with adapter_stage() as stage:
        stage.put(SQL, "v1")
        await stage.serve(1)
        await stage.apply(lora_adapter())
        await stage.settled()
        before = (await stage.store.get(*LIST))["metadata"]["ownerReferences"][0]["uid"]
        live = await stage.store.get(*LIST)
        await stage.store.delete(INFERENCE_SERVICE, "models", "chat")
        assert live["metadata"]["ownerReferences"][0]["controller"] is True
        await stage.settled()
        await stage.store.create({**live, "metadata": {**live["metadata"], "resourceVersion": ""}})
        await stage.apply(inference_service(replicas=1, engine={"lora": {}}))
        await stage.store.delete(*LIST)
        await stage.settled()

        async def is_ours() -> bool:
            (owner,) = (await stage.store.get(*LIST))["metadata"]["ownerReferences"]
            return bool(owner["uid"] != before)

        await eventually(is_ours)


async def test_pods_that_cannot_load_it_know_that_there_is_such_an_adapter() -> None:
    """They answer 503 with Retry-After, as who tries again comes to another pod; not 404."""
    async with adapter_stage() as stage:
        stage.put("/adapters/adapters-6c1df1c5a1/sql", "v1")
        (old,) = await stage.serve(1)
        lora = {"sources": [{"pvc": {"name": "adapters"}}]}
        await stage.apply(inference_service(replicas=2, engine={"lora": lora}))
        await stage.settled()
        new = await stage.add_pod()
        mounts = new["spec"]["containers"][0]["volumeMounts"]
        (path,) = (m["mountPath"] for m in mounts if m["mountPath"].startswith("/adapters/"))
        digest = stage.put(f"{path}/sql", "v1")
        await stage.apply(lora_adapter(uri="pvc://adapters/sql"))
        await stage.settled()
        assert stage.served(new) == {"sql": digest}
        assert stage.served(old) == {"sql": None}
        assert await stage.ready() == ("False", "SourceNotMounted")
        assert await stage.is_admitted(old)
        (entry,) = await stage.wanted()
        assert entry["path"] == f"{path}/sql"
        stage.workers.loads.clear()
        await stage.look()
        assert stage.workers.loads == []
        await stage.delete()
        await stage.settled()
        assert (stage.served(old), stage.served(new)) == ({}, {})


@pytest.mark.parametrize("length", [10, 3000])
def test_list_stays_below_what_an_object_holds(length: int) -> None:
    service = parse_inference_service(inference_service(engine={"lora": {}}))
    wanted = [
        WantedAdapter(f"a{number}", "/" + "x" * length, None, "sha256:" + "0" * 64, is_lazy=False)
        for number in range(1000)
    ]
    (text,) = adapter_list(service, wanted)["data"].values()
    assert len(text) <= SIZE_LIMIT + 100
    assert text.count('"name"') == 1000 if length == 10 else 250 < text.count('"name"') < 300

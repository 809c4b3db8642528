"""Before the operator is removed: it is stopped, and nothing waits for it afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo_operator.cli import main
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.cluster.retirement import release_resources, stop_operator
from octavo_operator.errors import ConflictError, NotFoundError, RejectedError
from octavo_operator.labels import API_VERSION
from octavo_operator.manifests.kinds import DEPLOYMENT, INFERENCE_SERVICE, LORA_ADAPTER, POD

OURS = "serving.octavo.dev/finalizer"
FOREIGN = "example.org/backup"
LABELS = {"app.kubernetes.io/name": "octavo"}


def held(kind: str, namespace: str, *finalizers: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": "x", "namespace": namespace, "finalizers": list(finalizers)},
        "spec": {},
    }


async def test_own_finalizers_go_and_those_of_others_stay() -> None:
    store = ObjectStore(seed=1)
    await store.create(held("LoRAAdapter", "a", OURS, FOREIGN))
    await store.create(held("InferenceService", "b", OURS))
    await store.create(held("InferenceService", "c", FOREIGN))
    assert await release_resources(store, ()) == 2
    adapter = await store.get(LORA_ADAPTER, "a", "x")
    assert adapter["metadata"]["finalizers"] == [FOREIGN]
    writes = store.writes
    assert await release_resources(store, ()) == 0
    assert store.writes == writes


async def test_resource_that_waited_for_the_operator_goes() -> None:
    store = ObjectStore(seed=1)
    await store.create(held("LoRAAdapter", "a", OURS))
    await store.delete(LORA_ADAPTER, "a", "x")
    assert (await store.get(LORA_ADAPTER, "a", "x"))["metadata"]["deletionTimestamp"]
    await release_resources(store, ())
    with pytest.raises(NotFoundError):
        await store.get(LORA_ADAPTER, "a", "x")


async def test_only_watched_namespaces_are_touched() -> None:
    store = ObjectStore(seed=1)
    for namespace in ("a", "b"):
        await store.create(held("InferenceService", namespace, OURS))
    assert await release_resources(store, ["a"]) == 1
    left = await store.get(INFERENCE_SERVICE, "b", "x")
    assert left["metadata"]["finalizers"] == [OURS]


async def test_finalizer_that_somebody_adds_meanwhile_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ObjectStore(seed=1)
    await store.create(held("InferenceService", "a", OURS))
    merge, interfered = store.merge, []

    async def interfere(*arguments: Any, **options: Any) -> Any:
        if not interfered:
            interfered.append(True)
            patch = {"metadata": {"finalizers": [OURS, FOREIGN]}}
            await merge(INFERENCE_SERVICE, "a", "x", patch)
        return await merge(*arguments, **options)

    monkeypatch.setattr(store, "merge", interfere)
    assert await release_resources(store, ()) == 1
    left = await store.get(INFERENCE_SERVICE, "a", "x")
    assert left["metadata"]["finalizers"] == [FOREIGN]


async def test_endless_conflict_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(seed=1)
    await store.create(held("InferenceService", "a", OURS))

    async def refuse(*arguments: Any, **options: Any) -> Any:
        raise ConflictError("again")

    monkeypatch.setattr(store, "merge", refuse)
    with pytest.raises(ConflictError):
        await release_resources(store, ())


async def test_resource_that_cannot_be_released_holds_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ObjectStore(seed=1)
    for namespace in ("a", "b"):
        await store.create(held("LoRAAdapter", namespace, OURS))
    merge = store.merge

    async def refuse_the_first(kind: Any, namespace: str, *rest: Any) -> Any:
        if namespace == "a":
            raise RejectedError("spec.source.uri: Invalid value")
        return await merge(kind, namespace, *rest)

    monkeypatch.setattr(store, "merge", refuse_the_first)
    with pytest.raises(RejectedError):
        await release_resources(store, ())
    assert (await store.get(LORA_ADAPTER, "b", "x"))["metadata"]["finalizers"] == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "retire is to stop no operator and release every namespace"),
        (["--namespace", "octavo-system"], "give both, or neither"),
        (["--deployment", "octavo-operator"], "give both, or neither"),
    ],
)
def test_retire_says_what_it_lacks(
    words: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OCTAVO_NAMESPACES", raising=False)
    assert main(["retire", *words]) == 2
    assert problem in capsys.readouterr().err


async def test_operator_is_stopped_before_anything_else() -> None:
    store = ObjectStore(seed=1)
    spec = {"replicas": 2, "selector": {"matchLabels": LABELS}}
    metadata = {"name": "octavo-operator", "namespace": "system"}
    await store.create(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
    )
    pod = {"name": "octavo-operator-1", "namespace": "system", "labels": LABELS}
    await store.create({"apiVersion": "v1", "kind": "Pod", "metadata": pod})
    stopping = asyncio.create_task(stop_operator(store, "system", "octavo-operator"))
    while (await store.get(DEPLOYMENT, "system", "octavo-operator"))["spec"]["replicas"]:
        await asyncio.sleep(0)
    assert not stopping.done()
    await store.delete(POD, "system", "octavo-operator-1")
    await asyncio.wait_for(stopping, 30)


async def test_operator_that_is_gone_already_is_no_error() -> None:
    await stop_operator(ObjectStore(seed=1), "system", "octavo-operator")

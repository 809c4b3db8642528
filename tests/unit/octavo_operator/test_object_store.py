"""The cluster in memory has the semantics of an API server where the operator relies on them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo_operator.cluster.interface import EventType
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import ConflictError, GoneError, NotFoundError, RejectedError
from octavo_operator.manifests.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    LEADER_WORKER_SET,
    POD,
    POD_MONITOR,
    SERVICE,
    Kind,
)

NS = "models"


def service(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat", "namespace": NS},
        "spec": spec,
    }


def pod(name: str = "one", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NS, **metadata},
        "spec": {},
    }


def deployment(containers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": NS},
        "spec": {"template": {"spec": {"containers": containers}}},
    }


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(seed=1)


async def test_version_rises_with_each_change_and_only_then(store: ObjectStore) -> None:
    first = await store.apply(service(type="ClusterIP"))
    second = await store.apply(service(type="ClusterIP"))
    assert second == first
    assert store.writes == 1
    third = await store.apply(service(type="NodePort"))
    assert int(third["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    assert third["metadata"]["uid"] == first["metadata"]["uid"]


async def test_create_of_what_exists_is_a_conflict(store: ObjectStore) -> None:
    await store.create(pod())
    with pytest.raises(ConflictError):
        await store.create(pod())


async def test_stale_version_is_a_conflict(store: ObjectStore) -> None:
    old = await store.create(pod())
    await store.merge(POD, NS, "one", {"spec": {"nodeName": "a"}})
    with pytest.raises(ConflictError, match="has been modified"):
        await store.write_status(POD, NS, "one", {}, old["metadata"]["resourceVersion"])
    with pytest.raises(ConflictError):
        await store.update(old)


async def test_generate_name(store: ObjectStore) -> None:
    manifest = pod()
    del manifest["metadata"]["name"]
    manifest["metadata"]["generateName"] = "chat-"
    names = {(await store.create(manifest))["metadata"]["name"] for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("chat-") and len(name) == 10 for name in names)


async def test_status_and_spec_are_written_apart(store: ObjectStore) -> None:
    created = await store.create({**pod(), "status": {"phase": "Failed"}})
    assert "status" not in created
    patched = await store.merge(
        POD, NS, "one", {"status": {"phase": "Running"}, "spec": {"a": 1}}, subresource="status"
    )
    assert (patched["status"], patched["spec"]) == ({"phase": "Running"}, {})
    assert patched["metadata"]["generation"] == 1
    patched = await store.merge(POD, NS, "one", {"status": None, "spec": {"a": 1}})
    assert (patched["status"], patched["spec"]) == ({"phase": "Running"}, {"a": 1})
    assert patched["metadata"]["generation"] == 2
    updated = await store.update(pod())
    assert updated["status"] == {"phase": "Running"}


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        (DEPLOYMENT, [1, 2, 3, 4]),
        (ENDPOINT_SLICE, [2, 2, 3, 4]),
        (POD, [1, 1, 2, 3]),
        (LEADER_WORKER_SET, [1, 1, 2, 3]),
        (SERVICE, [None] * 4),
        (CONFIG_MAP, [None] * 4),
    ],
    ids=lambda value: value.kind if isinstance(value, Kind) else "",
)
async def test_generation_counts_what_it_counts_in_kubernetes(
    kind: Kind, counts: list[int | None]
) -> None:
    """After a change of labels, of annotations and of the content, and when it is marked to go."""
    store = ObjectStore(optional_kinds=[LEADER_WORKER_SET], seed=1)
    metadata = {"name": "one", "namespace": NS, "finalizers": ["example.org/hold"]}
    manifest = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}
    created = await store.create(manifest)
    assert created["metadata"].get("generation") == (None if counts[0] is None else 1)
    found = []
    for patch in (
        {"metadata": {"labels": {"a": "1"}}},
        {"metadata": {"annotations": {"a": "1"}}},
        {"spec": {"a": 1}},
    ):
        await store.merge(kind, NS, "one", patch)
        live = await store.merge(kind, NS, "one", {"status": {"a": 1}}, subresource="status")
        found.append(live["metadata"].get("generation"))
    for _ in range(2):
        await store.delete(kind, NS, "one")
    found.append((await store.get(kind, NS, "one"))["metadata"].get("generation"))
    assert found == counts


async def test_apply_removes_what_it_no_longer_says_and_keeps_what_others_said(
    store: ObjectStore,
) -> None:
    await store.apply(service(type="ClusterIP", selector={"a": "1", "b": "2"}))
    await store.merge(SERVICE, NS, "chat", {"spec": {"selector": {"c": "3"}, "clusterIP": "10.1"}})
    live = await store.apply(service(selector={"a": "1"}))
    assert live["spec"] == {"selector": {"a": "1", "c": "3"}, "clusterIP": "10.1"}


async def test_apply_merges_keyed_lists_by_key(store: ObjectStore) -> None:
    await store.apply(deployment([{"name": "worker", "image": "a"}, {"name": "old"}]))
    await store.merge(
        DEPLOYMENT,
        NS,
        "chat",
        {
            "spec": {
                "template": {
                    "spec": {
                        "containers": [
                            {"name": "worker", "image": "a", "tty": True},
                            {"name": "old"},
                            {"name": "injected"},
                        ]
                    }
                }
            }
        },
        manager="webhook",
    )
    live = await store.apply(deployment([{"name": "worker", "image": "b"}]))
    assert live["spec"]["template"]["spec"]["containers"] == [
        {"name": "worker", "image": "b", "tty": True},
        {"name": "injected"},
    ]


async def test_apply_without_force_respects_other_managers(store: ObjectStore) -> None:
    await store.apply(service(type="ClusterIP"), "other")
    with pytest.raises(ConflictError, match="other"):
        await store.apply(service(type="NodePort"), force=False)
    shared = await store.apply(service(type="ClusterIP"), force=False)
    assert [entry["manager"] for entry in shared["metadata"]["managedFields"]] == [
        "octavo-operator",
        "other",
    ]
    taken = await store.apply(service(type="NodePort"))
    assert [entry["manager"] for entry in taken["metadata"]["managedFields"]] == ["octavo-operator"]
    assert taken["metadata"]["managedFields"][0]["fieldsV1"] == {"f:spec": {"f:type": {}}}


async def test_field_of_two_managers_stays_when_one_gives_it_up(store: ObjectStore) -> None:
    await store.apply(service(type="ClusterIP"), "one")
    await store.apply(service(type="ClusterIP"), "two")
    live = await store.apply(service(), "one")
    assert live["spec"] == {"type": "ClusterIP"}
    live = await store.apply(service(), "two")
    assert live["spec"] == {}


async def test_apply_with_managed_fields_is_rejected(store: ObjectStore) -> None:
    live = await store.apply(service())
    with pytest.raises(RejectedError):
        await store.apply(live)


async def test_owned_objects_go_with_their_last_owner(store: ObjectStore) -> None:
    first, second = await store.create(pod("first")), await store.create(pod("second"))
    references = [{"uid": owner["metadata"]["uid"]} for owner in (first, second)]
    child = await store.create(pod("child", ownerReferences=references))
    grandchild = {"ownerReferences": [{"uid": child["metadata"]["uid"]}]}
    await store.create(pod("grandchild", **grandchild))
    await store.delete(POD, NS, "first")
    assert len((await store.list_objects(POD, NS, {})).items) == 3
    await store.delete(POD, NS, "second")
    assert (await store.list_objects(POD, NS, {})).items == ()


async def test_finalizer_holds_a_deleted_object(store: ObjectStore) -> None:
    await store.create(pod(finalizers=["hold"]))
    await store.delete(POD, NS, "one")
    assert (await store.get(POD, NS, "one"))["metadata"]["deletionTimestamp"]
    await store.merge(POD, NS, "one", {"metadata": {"finalizers": None}})
    with pytest.raises(NotFoundError):
        await store.get(POD, NS, "one")


async def test_delete_with_another_uid_is_a_conflict(store: ObjectStore) -> None:
    await store.create(pod())
    with pytest.raises(ConflictError):
        await store.delete(POD, NS, "one", "other-uid")


async def test_lists_select_by_label_and_namespace(store: ObjectStore) -> None:
    await store.create(pod("one", labels={"app": "a", "tier": "x"}))
    await store.create(pod("two", labels={"app": "b"}))
    await store.create(pod("three", namespace="other", labels={"app": "a"}))

    async def names(namespace: str | None, labels: dict[str, str]) -> list[str]:
        found = await store.list_objects(POD, namespace, labels)
        return [live["metadata"]["name"] for live in found.items]

    assert await names(NS, {"app": "a"}) == ["one"]
    assert sorted(await names(None, {"app": "a"})) == ["one", "three"]
    assert await names(NS, {"app": "a", "tier": "y"}) == []


async def test_watch_goes_on_from_a_list_and_sees_later_changes(store: ObjectStore) -> None:
    await store.create(pod("before"))
    listed = await store.list_objects(POD, NS, {})
    events = store.watch(POD, NS, {}, listed.resource_version)

    async def next_type() -> EventType:
        return (await anext(events)).type

    coming = asyncio.create_task(next_type())
    await asyncio.sleep(0)
    await store.create(pod("after"))
    assert await coming is EventType.ADDED
    await store.delete(POD, NS, "before")
    event = await anext(events)
    assert (event.type, event.object["metadata"]["name"]) == (EventType.DELETED, "before")


async def test_watch_with_a_selector_tells_of_what_leaves_and_enters_it(store: ObjectStore) -> None:
    """Seen with Kubernetes 1.36: what leaves is told of as it was, at the version of the change."""
    await store.create(pod("a", labels={"app": "chat"}))
    listed = await store.list_objects(POD, NS, {"app": "chat"})
    events = store.watch(POD, NS, {"app": "chat"}, listed.resource_version)
    left = await store.merge(POD, NS, "a", {"metadata": {"labels": {"app": None}}})
    await store.merge(POD, NS, "a", {"metadata": {"labels": {"other": "yes"}}})
    await store.merge(POD, NS, "a", {"metadata": {"labels": {"app": "chat"}}})
    gone, back = await anext(events), await anext(events)
    assert (gone.type, gone.resource_version) == (
        EventType.DELETED,
        left["metadata"]["resourceVersion"],
    )
    assert gone.object["metadata"]["labels"] == {"app": "chat"}
    assert (back.type, back.object["metadata"]["labels"]) == (
        EventType.ADDED,
        {"app": "chat", "other": "yes"},
    )


async def test_watch_from_a_forgotten_version_is_gone(store: ObjectStore) -> None:
    await store.create(pod())
    store.forget_history()
    with pytest.raises(GoneError):
        await anext(store.watch(POD, NS, {}, "0"))


async def test_kind_that_the_cluster_lacks_is_not_found(store: ObjectStore) -> None:
    with pytest.raises(NotFoundError, match="no kind PodMonitor"):
        await store.list_objects(POD_MONITOR, NS, {})


async def test_callers_cannot_change_what_is_stored(store: ObjectStore) -> None:
    manifest = service(selector={"a": "1"})
    live: Any = await store.apply(manifest)
    manifest["spec"]["selector"]["a"] = "2"
    live["spec"]["selector"]["a"] = "3"
    assert (await store.get(SERVICE, NS, "chat"))["spec"]["selector"] == {"a": "1"}

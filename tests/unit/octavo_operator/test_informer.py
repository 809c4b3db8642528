"""What an informer holds when answers and events overtake each other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from eventually import eventually
from faulty_cluster import FaultyCluster
from inference_services import inference_service
from octavo_operator.cluster.child_index import ChildIndex
from octavo_operator.cluster.failures import response_error
from octavo_operator.cluster.informer import FIRST_PAUSE_S, Informer, ServiceKey
from octavo_operator.cluster.interface import Cluster
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import ForbiddenError, GoneError
from octavo_operator.labels import APP_NAME, LABEL_NAME, LABEL_SERVICE
from octavo_operator.manifests.kinds import LEADER_WORKER_SET, POD, SERVICE, Kind
from octavo_operator.manifests.metadata import sealed
from octavo_operator.manifests.service import service_manifest
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.resources.inference_service import parse_inference_service

KEY: ServiceKey = ("models", "chat")


@asynccontextmanager
async def informer(cluster: Cluster, kind: Kind = SERVICE) -> AsyncIterator[Informer]:
    found = Informer(cluster, kind, None, {}, lambda service: None)
    running = asyncio.create_task(found.run())
    await found.listed.wait()
    try:
        yield found
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def applied(store: ObjectStore) -> LiveObject:
    manifest = service_manifest(parse_inference_service(inference_service()))
    return await store.apply(sealed(manifest))


async def test_answer_to_a_write_brings_no_deleted_object_back() -> None:
    """No event would ever take it away again."""
    store = ObjectStore()
    async with informer(store) as found:
        written = await applied(store)
        await eventually(lambda: len(found.objects_of(KEY)) == 1)
        await store.delete(SERVICE, "models", "chat")
        await eventually(lambda: found.objects_of(KEY) == ())
        found.remember(written)
        assert found.objects_of(KEY) == ()


async def test_write_is_known_before_the_watch_tells_of_it() -> None:
    store = ObjectStore()
    async with informer(store) as found:
        found.remember(await applied(store))
        assert len(found.objects_of(KEY)) == 1


async def test_event_that_is_older_than_a_write_takes_nothing_of_it_back() -> None:
    store = ObjectStore()
    async with informer(store) as found:
        await applied(store)
        patch = {"metadata": {"annotations": {"late": "yes"}}}
        newest = await store.merge(SERVICE, "models", "chat", patch)
        found.remember(newest)
        seen: list[str] = []
        found._on_change = lambda service: seen.append(
            found.objects_of(KEY)[0]["metadata"]["resourceVersion"]
        )
        await eventually(lambda: len(seen) == 2)
        assert set(seen) == {newest["metadata"]["resourceVersion"]}


async def test_pod_that_says_it_belongs_elsewhere_leaves_its_service() -> None:
    """As when somebody takes a pod out of service to look into it."""
    store = ObjectStore()
    labels = {LABEL_NAME: APP_NAME, LABEL_SERVICE: "chat"}
    metadata = {"name": "chat-1", "namespace": "models", "labels": labels}
    await store.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata})
    async with informer(store, POD) as found:
        told: set[ServiceKey] = set()
        found._on_change = told.add
        assert len(found.objects_of(KEY)) == 1
        patch = {"metadata": {"labels": {LABEL_SERVICE: "other"}}}
        await store.merge(POD, "models", "chat-1", patch)
        await eventually(lambda: found.objects_of(KEY) == ())
        assert told == {KEY, ("models", "other")}
        await store.delete(POD, "models", "chat-1")
        await eventually(lambda: found.all_objects() == ())


async def test_child_is_its_owners_whatever_its_label_says() -> None:
    """Were it taken for absent, a Deployment would be made anew, from a newer template."""
    store = ObjectStore()
    async with informer(store) as found:
        await applied(store)
        patch = {"metadata": {"labels": {LABEL_SERVICE: None}}}
        bare = await store.merge(SERVICE, "models", "chat", patch)
        await eventually(lambda: found._told_of == int(bare["metadata"]["resourceVersion"]))
        (known,) = found.objects_of(KEY)
        assert LABEL_SERVICE not in known["metadata"]["labels"]


async def test_token_that_is_not_accepted_for_a_moment_makes_no_object_forgotten() -> None:
    """Kinds that a cluster may lack are given up where a right is missing. A workload among them
    that is forgotten would be made anew, by a newer operator from a newer template."""
    store = ObjectStore(optional_kinds={LEADER_WORKER_SET})
    cluster = FaultyCluster(store)
    labels = {"app.kubernetes.io/managed-by": "octavo-operator", LABEL_SERVICE: "chat"}
    await store.create(
        {
            "apiVersion": LEADER_WORKER_SET.api_version,
            "kind": LEADER_WORKER_SET.kind,
            "metadata": {"name": "chat", "namespace": "models", "labels": labels},
        }
    )
    cluster.faults = [None, response_error("watch leaderworkersets", 401, {}, b"Unauthorized")]
    async with informer(cluster, LEADER_WORKER_SET) as found:
        await eventually(lambda: cluster.calls["watch leaderworkersets"] == 1)
        await asyncio.sleep(0)
        assert len(found.objects_of(KEY)) == 1


async def test_server_that_knows_no_version_is_not_asked_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    cluster = FaultyCluster(ObjectStore())
    cluster.faults = [None, GoneError("too old")] * 5
    with monkeypatch.context() as patched:
        patched.setattr("octavo_operator.cluster.informer.asyncio.sleep", note)
        async with informer(cluster):
            while cluster.calls["list services"] < 6:
                await sleep(0)
    assert pauses[:5] == [FIRST_PAUSE_S] * 5


async def test_namespace_that_may_not_be_seen_is_told_of_once_and_so_is_its_return(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was a line a minute for each kind."""
    monkeypatch.setattr("octavo_operator.cluster.informer.ABSENT_KIND_PAUSE_S", 0.02)
    monkeypatch.setattr("octavo_operator.cluster.informer.FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr("octavo_operator.cluster.informer.LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr("octavo_operator.cluster.troubles.GATHER_S", 0.05)
    caplog.set_level(logging.INFO, "octavo_operator.cluster")
    cluster = FaultyCluster(ObjectStore())
    cluster.always = ForbiddenError("list pods: HTTP 403: no")
    index = ChildIndex(cluster, ["gone"], lambda service: None)
    running = asyncio.create_task(index.run())
    await eventually(lambda: cluster.calls["list pods"] > 10)
    (line,) = caplog.messages
    assert line.startswith("namespace gone: cannot follow configmaps, deployments, ")
    assert line.endswith(": list pods: HTTP 403: no; trying until it works, which is told")
    cluster.always = None
    await eventually(lambda: len(caplog.messages) == 2)
    assert caplog.messages[1] == "namespace gone: everything is followed again"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

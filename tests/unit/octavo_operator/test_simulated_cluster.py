"""The reconciling core against a cluster in memory: faults at every call, many services, idle time.

Everything but kopf and HTTP is the real thing. Counts are gated; times are printed by
`pytest -s -k many`. OCTAVO_TEST_FULL=1 injects every fault at every call, and takes 200 services;
without it each fault is tried at every eighth call, and there are 40 services.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import resource as process_resources
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventually import eventually
from faulty_cluster import FaultyCluster
from inference_services import condition_message, conditions, inference_service
from inspections import H100, gpu_node, inspected_pod
from model_shapes import LLAMA_70B
from octavo_operator.cluster.admin_access import ROOT_BYTES, AdminAccess
from octavo_operator.cluster.alterations import PATIENCE_S
from octavo_operator.cluster.follower import Follower
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import (
    ClusterError,
    ConflictError,
    ForbiddenError,
    GoneError,
    NotFoundError,
    ThrottledError,
    UnavailableError,
)
from octavo_operator.labels import FIELD_MANAGER, LABEL_SERVICE
from octavo_operator.local.deployment_controller import new_pod
from octavo_operator.manifests.kinds import (
    CHILD_KINDS,
    DEPLOYMENT,
    EVENT,
    INFERENCE_SERVICE,
    JOB,
    OPTIONAL_KINDS,
    POD,
    SERVICE,
)
from octavo_operator.reconcile.live_object import LiveObject

IS_FULL = bool(os.environ.get("OCTAVO_TEST_FULL"))
KEY = ("models", "chat")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "work_queue.FIRST_RETRY_S",
        "work_queue.LONGEST_RETRY_S",
        "informer.FIRST_PAUSE_S",
        "informer.LONGEST_PAUSE_S",
    ):
        monkeypatch.setattr(f"octavo_operator.cluster.{name}", 0.002)


class Simulation:
    """An operator that follows a cluster, and a clock that goes when it is told to."""

    def __init__(self, store: type[ObjectStore] = ObjectStore, *, resync_s: float = 3600.0) -> None:
        self.store = store(seed=1, clock=lambda: self.now)
        self.cluster = FaultyCluster(self.store)
        self.now = NOW
        self.follower = self._new_follower(resync_s)
        self._running: asyncio.Task[None] | None = None

    def _new_follower(self, resync_s: float) -> Follower:
        """With keys that are the same in every run, as they are part of pod templates."""
        access = AdminAccess(bytes(ROOT_BYTES))
        return Follower(
            self.cluster, (), "worker:1", resync_s, access=access, clock=lambda: self.now
        )

    def start(self) -> None:
        self._running = asyncio.create_task(self.follower.run())

    async def stop(self) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def restart(self) -> None:
        """As after a crash: nothing that was in memory is left."""
        await self.stop()
        self.follower = self._new_follower(3600.0)
        self.start()
        for service in (await self.store.list_objects(INFERENCE_SERVICE, None, {})).items:
            metadata = service["metadata"]
            self.follower.queue.add((metadata["namespace"], metadata["name"]))

    async def apply(self, resource: dict[str, Any]) -> None:
        live = await self.store.apply(resource, "user")
        metadata = live["metadata"]
        self.follower.queue.add((metadata["namespace"], metadata["name"]))

    async def settled(self) -> None:
        """Until nothing is due, nothing waits for another try, and events have been seen."""
        for _ in range(3):
            await asyncio.sleep(0.005)
            await eventually(
                lambda: self.follower.queue.is_idle and not self.follower.queue._timers
            )

    async def service(self) -> LiveObject:
        return await self.store.get(INFERENCE_SERVICE, *KEY)

    async def make_ready(self, name: str = "chat", pods: int = 1) -> None:
        live = await self.store.get(DEPLOYMENT, "models", name)
        counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
        status = {"observedGeneration": live["metadata"]["generation"]}
        status |= dict.fromkeys(counts, pods)
        await self.store.write_status(DEPLOYMENT, "models", name, status, None)

    async def children(self) -> dict[str, Any]:
        """What matters of all children: their contents, without what the server counts."""
        found = {}
        for kind in CHILD_KINDS:
            if kind in OPTIONAL_KINDS:
                continue
            for live in (await self.store.list_objects(kind, None, {})).items:
                annotations = live["metadata"].get("annotations")
                found[kind.kind, live["metadata"]["name"]] = (live.get("spec"), annotations)
        return found


@asynccontextmanager
async def simulation(store: type[ObjectStore] = ObjectStore) -> AsyncIterator[Simulation]:
    running = Simulation(store)
    running.start()
    await running.follower.index.wait_listed("models")
    try:
        yield running
    finally:
        running.cluster.always = None
        running.cluster.faults.clear()
        await running.stop()


async def _story(running: Simulation) -> dict[str, Any]:
    """Create, come up, change, lose a child, come up again."""
    await running.apply(inference_service(replicas=1))
    await running.settled()
    await running.make_ready()
    await running.settled()
    await running.apply(inference_service(replicas=2, engine={"maxModelLen": 64}))
    await running.settled()
    await running.store.delete(SERVICE, *KEY)
    await running.settled()
    await running.make_ready(pods=2)
    await running.settled()
    assert conditions(await running.service())["Ready"] == ("True", "Serving")
    return await running.children()


async def _placed_story(running: Simulation) -> dict[str, Any]:
    """Auto: nodes and model are looked at, a placement is chosen, pods come up."""
    await running.store.create(gpu_node(H100))
    resource = inference_service(parallelism={"tensor": "Auto"}, engine={"maxModelLen": 8192})
    await running.apply(resource)
    await running.settled()
    (job,) = (await running.store.list_objects(JOB, "models", {})).items
    await running.store.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **job["spec"]["template"]["metadata"],
                "name": "look",
                "namespace": "models",
                "ownerReferences": [
                    {
                        "apiVersion": JOB.api_version,
                        "kind": JOB.kind,
                        "name": job["metadata"]["name"],
                        "uid": job["metadata"]["uid"],
                    }
                ],
            },
        },
        "controller",
    )
    found = inspected_pod(resource, LLAMA_70B)["status"]
    await running.store.write_status(POD, "models", "look", found, None)
    await running.settled()
    await running.make_ready()
    await running.settled()
    status = (await running.service())["status"]
    assert conditions(await running.service())["Ready"] == ("True", "Serving")
    assert (status["placement"]["tensor"], status["model"]["numLayers"]) == (2, 80)
    assert (await running.store.list_objects(POD, "models", {})).items == ()
    return await running.children()


async def test_calls_for_each_change_are_counted() -> None:
    async with simulation() as running:
        calls = running.cluster.calls
        calls.clear()
        await running.apply(inference_service(replicas=1))
        await running.settled()
        applies = {kind: count for kind, count in calls.items() if kind.startswith("apply")}
        assert set(applies.values()) == {1}
        assert calls["status inferenceservices"] == 1
        calls.clear()
        await running.make_ready()
        await running.settled()
        assert {key: calls[key] for key in calls if not key.startswith("get")} == {
            "apply Deployment": 1,  # remembers that these words have been proved
            "status inferenceservices": 1,
            "create Event": 2,
        }
        assert calls["get inferenceservices"] <= 2
        calls.clear()
        await running.apply(inference_service(replicas=3))
        await running.settled()
        assert (calls["apply Deployment"], calls["status inferenceservices"]) == (1, 1)
        assert sum(count for key, count in calls.items() if key.startswith("apply")) == 1


async def test_what_has_been_proved_is_not_doubted_while_pods_come_and_go() -> None:
    """Between a write of the Deployment and its controller's next word, its counts tell nothing."""
    async with simulation() as running:
        await running.apply(inference_service(replicas=1))
        await running.settled()
        await running.make_ready()
        await running.settled()
        proved = ("True", "Proved")
        assert conditions(await running.service())["PlacementReady"] == proved
        await running.apply(inference_service(replicas=3))
        await running.settled()
        assert conditions(await running.service())["PlacementReady"] == proved
        drain = {"drainSeconds": 7}
        await running.apply(inference_service(replicas=3, rollout=drain))
        await running.settled()
        service = await running.service()
        assert conditions(service)["Progressing"] == ("True", "RollingOut")
        assert conditions(service)["PlacementReady"] == proved
        longer = {"maxModelLen": 64}
        await running.apply(inference_service(replicas=3, rollout=drain, engine=longer))
        await running.settled()
        found = conditions(await running.service())["PlacementReady"]
        assert found == ("Unknown", "GPUMemoryUnknown")


_FAULTS = [
    ConflictError("conflict"),
    GoneError("gone"),
    ThrottledError("slow down", retry_after_s=0.002),
    UnavailableError("timed out"),
]


@pytest.mark.parametrize("story", [_story, _placed_story], ids=["story", "placed"])
@pytest.mark.parametrize("is_done_first", [False, True], ids=["refused", "answer-lost"])
@pytest.mark.parametrize("fault", _FAULTS, ids=lambda fault: type(fault).__name__)
async def test_fault_at_any_call_changes_nothing_in_the_end(
    fault: ClusterError, is_done_first: bool, story: Callable[[Simulation], Awaitable[Any]]
) -> None:
    async with simulation() as running:
        running.cluster.calls.clear()
        expected = await story(running)
        num_calls = running.cluster.calls.total()
    stride = 1 if IS_FULL else 8
    offset = 0 if IS_FULL else 2 * _FAULTS.index(fault) + is_done_first
    for position in range(offset, num_calls + 1, stride):
        async with simulation() as running:
            running.cluster.is_done_first = is_done_first
            running.cluster.faults = [None] * position + [fault]
            assert await story(running) == expected, position


async def test_dropped_watches_and_restarts_lose_nothing() -> None:
    async with simulation() as running:
        expected = await _story(running)
    async with simulation() as running:
        await running.apply(inference_service(replicas=1))
        await running.restart()
        await running.settled()
        await running.make_ready()
        running.store.forget_history()
        await running.restart()
        await running.settled()
        await running.apply(inference_service(replicas=2, engine={"maxModelLen": 64}))
        await running.restart()
        await running.store.delete(SERVICE, *KEY)
        await running.settled()
        await running.make_ready(pods=2)
        await running.settled()
        assert await running.children() == expected
        assert conditions(await running.service())["Ready"] == ("True", "Serving")


class _RewritingStore(ObjectStore):
    """Has a webhook that puts another registry in and counts the writes it has seen."""

    num_seen = 0

    async def apply(
        self, manifest: Mapping[str, Any], manager: str = FIELD_MANAGER, *, force: bool = True
    ) -> LiveObject:
        live = await super().apply(manifest, manager, force=force)
        if manifest["kind"] != "Deployment":
            return live
        self.num_seen += 1
        patch = copy.deepcopy(dict(live))
        patch["metadata"] = {"annotations": {"webhook.example.org/seen": str(self.num_seen)}}
        patch["spec"]["template"]["spec"]["containers"][0]["image"] = "mirror/worker:1"
        return await self.merge(DEPLOYMENT, *KEY, patch, manager="webhook")


async def test_webhook_that_rewrites_what_is_applied_is_not_fought() -> None:
    """Each apply made an event, and each event another apply."""
    async with simulation(_RewritingStore) as running:
        await running.apply(inference_service())
        await running.settled()
        await running.make_ready()
        for _ in range(20):
            running.follower.queue.add(KEY)
            await running.settled()
        # As it is made, and with the note of what has served.
        assert running.cluster.calls["apply Deployment"] == 2
        assert conditions(await running.service())["Ready"] == ("True", "Serving")
        await running.apply(inference_service(engine={"maxModelLen": 64}))
        await running.settled()
        assert running.cluster.calls["apply Deployment"] == 3
        running.now += timedelta(seconds=PATIENCE_S)
        running.follower.queue.add(KEY)
        await running.settled()
        assert running.cluster.calls["apply Deployment"] == 4
        await running.store.delete(DEPLOYMENT, *KEY)
        await running.settled()
        assert await running.store.get(DEPLOYMENT, *KEY)


async def test_long_outage_is_waited_out() -> None:
    async with simulation() as running:
        running.cluster.always = UnavailableError("no route")
        await running.apply(inference_service())
        await asyncio.sleep(0.05)
        with pytest.raises(NotFoundError):
            await running.store.get(DEPLOYMENT, *KEY)
        running.cluster.always = None
        await running.settled()
        await running.make_ready()
        await running.settled()
        assert conditions(await running.service())["Ready"] == ("True", "Serving")


async def test_nothing_is_written_in_ten_idle_minutes() -> None:
    """Looked at every second of them: no heartbeat, no rounding, no reordering gets written."""
    async with simulation() as running:
        await running.apply(inference_service(replicas=2))
        await running.settled()
        await running.make_ready(pods=2)
        await running.settled()
        version = (await running.service())["metadata"]["resourceVersion"]
        writes = running.store.writes
        for _ in range(600):
            running.now += timedelta(seconds=1)
            running.follower.queue.add(KEY)
            await asyncio.sleep(0)
        await running.settled()
        assert (await running.service())["metadata"]["resourceVersion"] == version
        assert running.store.writes == writes


async def test_workload_that_lost_its_label_gets_it_back_and_is_missed_when_gone() -> None:
    """It stayed known under the label that it had had, and so did one that was gone."""
    async with simulation() as running:
        await running.apply(inference_service(replicas=2))
        await running.settled()
        await running.make_ready(pods=2)
        await running.settled()
        before = await running.children()
        patch = {"metadata": {"labels": {LABEL_SERVICE: None}}}
        await running.store.merge(DEPLOYMENT, *KEY, patch)
        await running.settled()
        live = await running.store.get(DEPLOYMENT, *KEY)
        assert live["metadata"]["labels"][LABEL_SERVICE] == "chat"
        assert await running.children() == before
        await running.store.delete(DEPLOYMENT, *KEY)
        await running.settled()
        fresh = await running.store.get(DEPLOYMENT, *KEY)
        assert fresh["metadata"]["uid"] != live["metadata"]["uid"]


async def test_ready_is_false_while_the_only_pod_crashes() -> None:
    """kserve 1859: Ready=True while crashing."""
    async with simulation() as running:
        await running.apply(inference_service())
        await running.settled()
        await running.make_ready()
        await running.settled()
        await running.make_ready(pods=0)
        await running.settled()
        assert conditions(await running.service())["Ready"][0] == "False"


async def test_nodes_are_asked_for_while_somebody_needs_them_and_not_after() -> None:
    async with simulation() as running:
        calls = running.cluster.calls
        await _placed_story(running)
        assert calls["list nodes"] == 1
        await running.apply(inference_service("other"))
        await running.apply(inference_service("third"))
        await running.settled()
        assert calls["list nodes"] == 1
        assert calls["watch nodes"] == 0


async def test_an_operator_that_may_not_see_nodes_does_without() -> None:
    async with simulation() as running:
        await running.store.create(gpu_node(H100))
        # The resource and the kinds are read first.
        running.cluster.faults = [None, None, ForbiddenError("no right on nodes")]
        await running.apply(inference_service())
        await running.settled()
        assert running.cluster.calls["list nodes"] == 1
        found = conditions(await running.service())
        assert found["PlacementReady"] == ("Unknown", "GPUMemoryUnknown")


async def test_every_condition_ends_so_that_gitops_never_waits_for_ever() -> None:
    """kserve 4791: Argo stuck Progressing."""
    async with simulation() as running:
        await running.apply(inference_service())
        await running.settled()
        assert conditions(await running.service())["Progressing"] == ("True", "RollingOut")
        await running.make_ready()
        await running.settled()
        found = conditions(await running.service())
        assert found["Progressing"] == ("False", "Complete")
        status = (await running.service())["status"]
        assert status["observedGeneration"] == (await running.service())["metadata"]["generation"]


async def test_user_is_told_by_events_of_what_happens_once() -> None:
    async with simulation() as running:
        await running.apply(inference_service())
        await running.settled()
        await running.make_ready()
        await running.settled()
        await running.apply(inference_service(model={"uri": "ftp://x"}))
        await running.settled()
        await running.apply(inference_service(model={"uri": "ftp://x"}, replicas=2))
        await running.settled()
        events = (await running.store.list_objects(EVENT, "models", {})).items
        told = [(event["type"], event["reason"]) for event in events]
        assert sorted(told) == [
            ("Normal", "Complete"),
            ("Normal", "RollingOut"),
            ("Normal", "Serving"),
            ("Warning", "InvalidSpec"),
        ]
        warning = next(event for event in events if event["type"] == "Warning")
        assert warning["involvedObject"]["name"] == "chat"
        assert warning["message"] == condition_message(await running.service(), "Ready")


NUM_SERVICES, NUM_PODS = (200 if IS_FULL else 40), 4


async def test_many_services_cost_little() -> None:
    """Counts are gated; seconds and bytes are printed only, since this machine is not alone."""
    async with simulation() as running:
        gc.collect()
        before_kib = process_resources.getrusage(process_resources.RUSAGE_SELF).ru_maxrss
        for number in range(NUM_SERVICES):
            await running.apply(inference_service(f"chat-{number}", replicas=NUM_PODS))
        await running.settled()
        for number in range(NUM_SERVICES):
            deployment = await running.store.get(DEPLOYMENT, "models", f"chat-{number}")
            for _ in range(NUM_PODS):
                await running.store.create(new_pod(deployment), "controller")
            await running.make_ready(f"chat-{number}", NUM_PODS)
        await running.settled()
        assert len(running.follower.index.all_pods()) == NUM_SERVICES * NUM_PODS
        running.cluster.calls.clear()
        spent_s = []
        for number in range(NUM_SERVICES):
            started = time.process_time()
            await running.follower.reconciler.reconcile(("models", f"chat-{number}"))
            spent_s.append(time.process_time() - started)
        assert running.cluster.calls == {"get inferenceservices": NUM_SERVICES}
        after_kib = process_resources.getrusage(process_resources.RUSAGE_SELF).ru_maxrss
        p99_ms = 1000 * sorted(spent_s)[int(0.99 * NUM_SERVICES)]
        print(
            f"\n{NUM_SERVICES} services x {NUM_PODS} pods: p99 {p99_ms:.1f} ms CPU a pass, "
            f"{(after_kib - before_kib) / 1024:.0f} MiB more at most, the stand-in for the API "
            f"server and its history included"
        )
        pods = await running.store.list_objects(POD, "models", {})
        assert len(pods.items) == NUM_SERVICES * NUM_PODS

"""A service with pods that hold adapters, in memory, with the real reconciling core around it.

The test is the Deployment controller and the kubelet: it makes pods, restarts their containers,
takes them away. Everything but kopf and HTTP is the real thing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from eventually import eventually
from fake_adapter_table import AdapterTable, digest_of
from fake_adapters import FakeWorkers
from faulty_cluster import FaultyCluster
from inference_services import conditions, inference_service
from octavo_operator.cluster.admin_access import ROOT_BYTES, AdminAccess
from octavo_operator.cluster.follower import Follower
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import NotFoundError
from octavo_operator.labels import API_VERSION
from octavo_operator.local.deployment_controller import new_pod
from octavo_operator.manifests.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    INFERENCE_SERVICE,
    LORA_ADAPTER,
    POD,
)
from octavo_operator.reconcile.conditions import timestamp
from octavo_operator.reconcile.live_object import LiveObject

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ("models", "chat")


SQL = "hf://org/sql"
"""The source of most adapters here."""


def lora_adapter(name: str = "sql", uri: str = SQL, **spec: Any) -> dict[str, Any]:
    """A valid LoRAAdapter; keywords replace fields of the spec, source's included."""
    source = {
        "uri": uri,
        **{key: spec.pop(key) for key in ("revision", "digest", "secretRef") if key in spec},
    }
    annotations = spec.pop("annotations", None)
    return {
        "apiVersion": API_VERSION,
        "kind": "LoRAAdapter",
        "metadata": {
            "name": name,
            "namespace": "models",
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {"serviceRef": {"name": "chat"}, "servedName": name, "source": source, **spec},
    }


class AdapterStage:
    """`workers.sources.contents` says what is at which path; without `has_lists` new pods read an
    older list, with nothing in it. One `beside` another is a second operator there."""

    def __init__(self, beside: AdapterStage | None = None) -> None:
        self.now = NOW
        self.has_lists = True
        self.store = beside.store if beside else ObjectStore(seed=1, clock=lambda: self.now)
        self.cluster = FaultyCluster(self.store)
        self.workers = beside.workers if beside else FakeWorkers()
        self.loads: list[str | None] = []
        self.follower = self._new_follower()
        self._running: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)

    def _new_follower(self) -> Follower:
        return Follower(
            self.cluster,
            (),
            "worker:1",
            3600.0,
            access=AdminAccess(bytes(ROOT_BYTES)),
            workers=self.workers,
            clock=lambda: self.now,
            on_load=lambda seconds, reason: self.loads.append(reason),
        )

    async def start(self) -> None:
        self._running = asyncio.create_task(self.follower.run())
        await self.follower.index.wait_listed("models")

    async def stop(self) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def restart_operator(self) -> None:
        """As after a crash: nothing that was in memory is left, and kopf lists all there is."""
        await self.stop()
        self.follower = self._new_follower()
        await self.start()
        for service in (await self.store.list_objects(INFERENCE_SERVICE, None, {})).items:
            metadata = service["metadata"]
            self.follower.see_service((metadata["namespace"], metadata["name"]))
        for adapter in (await self.store.list_objects(LORA_ADAPTER, None, {})).items:
            self._see(adapter)

    def _see(self, adapter: Mapping[str, Any]) -> None:
        service = adapter["spec"]["serviceRef"]["name"]
        self.follower.see_adapter((adapter["metadata"]["namespace"], service))

    async def apply(self, *resources: dict[str, Any]) -> None:
        for resource in resources:
            live = await self.store.apply(resource, "user")
            if resource["kind"] == "LoRAAdapter":
                self._see(live)
            else:
                self.follower.see_service((live["metadata"]["namespace"], live["metadata"]["name"]))

    async def serve(self, num_pods: int = 1, **engine: Any) -> list[LiveObject]:
        """A service with room for adapters, and so many pods of it that are ready."""
        engine = {"lora": {}, **engine}
        await self.apply(inference_service(replicas=num_pods, engine=engine))
        await self.settled()
        return [await self.add_pod() for _ in range(num_pods)]

    async def add_pod(self, *, is_started: bool = True) -> LiveObject:
        deployment = await self.store.get(DEPLOYMENT, *KEY)
        manifest = new_pod(deployment)
        manifest["metadata"].pop("finalizers")
        pod = await self.store.create(manifest, "controller")
        if is_started:
            await self.start_container(pod)
        return await self.store.get(POD, "models", pod["metadata"]["name"])

    async def start_container(self, pod: LiveObject, *, keep: bool = False) -> None:
        """A new container whose worker is ready; `keep`: it has loaded what it remembers."""
        number, name = next(self._numbers), pod["metadata"]["name"]
        live = await self.store.get(POD, "models", name)
        status = live.get("status") or {}
        host = status.get("podIP") or f"10.0.0.{number}"
        old = self.workers.tables.pop(host, None)
        table = self.workers.table(host)
        if keep and old is not None:
            table.entries, table.is_held = old.entries, False
        elif old is None:
            await self._begin_with_what_is_wanted(table)
        since = {"status": "True", "lastTransitionTime": timestamp(self.now)}
        await self.store.write_status(
            POD,
            "models",
            name,
            {
                "phase": "Running",
                "podIP": host,
                "conditions": [{"type": "ContainersReady", **since}],
                "containerStatuses": [
                    {
                        "name": "worker",
                        "containerID": f"containerd://{number}",
                        "ready": True,
                        "started": True,
                    }
                ],
            },
            None,
        )

    async def _begin_with_what_is_wanted(self, table: AdapterTable) -> None:
        if self.has_lists:
            with suppress(NotFoundError, KeyError):
                for entry in await self.wanted():
                    table.want(entry)

    async def remove_pod(self, pod: LiveObject) -> None:
        self.workers.tables.pop(host_of(pod), None)
        await self.store.delete(POD, "models", pod["metadata"]["name"])

    async def settled(self) -> None:
        """Until no call is under way, nothing is due, and events have been seen."""
        for _ in range(3):
            await asyncio.sleep(0.005)
            await eventually(self._is_settled)

    def _is_settled(self) -> bool:
        queues = (self.follower.queue, self.follower.adapter_queue)
        loop = asyncio.get_running_loop()
        soon = loop.time() + 1.0
        is_due = any(timer.when() < soon for queue in queues for timer in queue._timers.values())
        busy = any(ledger.busy for ledger in self.follower.adapters._ledgers.values())
        return all(queue.is_idle for queue in queues) and not is_due and not busy

    async def look(self) -> None:
        """A look that nothing has asked for, as a resync makes one."""
        self.follower.adapter_queue.add(KEY)
        await self.settled()

    async def pass_time(self, seconds: float) -> None:
        """On the clock of deadlines; then a look."""
        self.now += timedelta(seconds=seconds)
        await self.look()

    async def adapter(self, name: str = "sql") -> LiveObject:
        return await self.store.get(LORA_ADAPTER, "models", name)

    async def ready(self, name: str = "sql") -> tuple[str, str]:
        """Status and reason of an adapter's condition Ready."""
        return conditions(await self.adapter(name))["Ready"]

    async def delete_service(self) -> None:
        """Until it has been looked at; its pods are still there."""
        await self.store.delete(INFERENCE_SERVICE, *KEY)
        self.follower.see_service(KEY)
        await self.settled()

    async def delete(self, name: str = "sql") -> None:
        live = await self.adapter(name)
        await self.store.delete(LORA_ADAPTER, "models", name)
        self._see(live)

    async def is_gone(self, name: str = "sql") -> bool:
        try:
            await self.adapter(name)
        except NotFoundError:
            return True
        return False

    async def is_admitted(self, pod: LiveObject) -> bool:
        """Whether its worker was told that no adapter is missing, or needs no word."""
        return not self.workers.table(host_of(await self._live(pod))).is_held

    async def _live(self, pod: LiveObject) -> LiveObject:
        return await self.store.get(POD, "models", pod["metadata"]["name"])

    async def wanted(self) -> list[dict[str, Any]]:
        """What a new pod finds in the list of its adapters."""
        live = await self.store.get(CONFIG_MAP, "models", "chat-adapters")
        found: list[dict[str, Any]] = json.loads(live["data"]["wanted.json"])["adapters"]
        return found

    def served(self, pod: LiveObject) -> dict[str, str | None]:
        """Digest by name, as the pod's worker has them; None for what it merely knows of."""
        entries = self.workers.table(host_of(pod)).entries
        return {
            name: entry["digest"] if entry["state"] == "ready" else None
            for name, entry in entries.items()
        }

    def put(self, path: str, content: str) -> str:
        """Have `content` at `path`; its digest."""
        self.workers.sources.contents[path] = content
        return digest_of(content)


def host_of(pod: LiveObject) -> str:
    return str(pod["status"]["podIP"])


def counts(adapter: LiveObject) -> tuple[int, int, int]:
    """Desired, loaded, failed."""
    status = adapter["status"]
    return status["desired"], status["loaded"], status["failed"]


def states(adapter: LiveObject) -> list[str]:
    return [entry["state"] for entry in adapter["status"]["pods"]]


@asynccontextmanager
async def adapter_stage(beside: AdapterStage | None = None) -> AsyncIterator[AdapterStage]:
    stage = AdapterStage(beside)
    await stage.start()
    try:
        yield stage
    finally:
        stage.cluster.always = None
        stage.cluster.faults.clear()
        stage.workers.sources.hanging.clear()
        await stage.stop()

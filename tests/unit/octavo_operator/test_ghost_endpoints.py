"""production-stack 1091: endpoints of pods that are gone stay routed, and requests to them fail.

The cluster keeps the endpoints of a Service; what Octavo routes by itself, in the activator and in
local mode, and the one endpoint that it writes, are held here. production-stack 601: nor is a pod
on its way out given a new connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from eventually import eventually
from inference_services import inference_service
from octavo_operator.address import Address
from octavo_operator.cluster.activator import ready_addresses
from octavo_operator.cluster.child_index import ChildIndex
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.holding_proxy import HoldingProxy
from octavo_operator.labels import selector_labels
from octavo_operator.manifests.kinds import ENDPOINT_SLICE, POD
from octavo_operator.reconcile.observed import Observed
from octavo_operator.reconcile.replicas import Demand
from planner_world import World

CHAT = ("models", "chat")
READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


class Routed:
    """A cluster with pods of one service, and where the operator would send its calls."""

    def __init__(self) -> None:
        self.store = ObjectStore(seed=1)
        self.index = ChildIndex(self.store, (), lambda service: None)

    async def add(self, name: str, ip: str, **metadata: Any) -> None:
        labels = selector_labels("chat")
        body = {"name": name, "namespace": "models", "labels": labels, **metadata}
        await self.store.create({"apiVersion": "v1", "kind": "Pod", "metadata": body})
        await self.store.write_status(POD, "models", name, {**READY, "podIP": ip}, None)

    def hosts(self) -> set[str]:
        return {address.host for address in ready_addresses(self.index.pods_of(CHAT))}


@pytest.fixture
async def routed() -> AsyncIterator[Routed]:
    found = Routed()
    await found.add("chat-1", "10.0.0.1")
    await found.add("chat-2", "10.0.0.2")
    following = asyncio.create_task(found.index.run())
    await eventually(lambda: found.hosts() == {"10.0.0.1", "10.0.0.2"})
    yield found
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_pod_that_is_deleted_is_routed_no_more(routed: Routed) -> None:
    """At once, as when it is deleted by force or its node is gone."""
    await routed.store.delete(POD, "models", "chat-1")
    await eventually(lambda: routed.hosts() == {"10.0.0.2"})


async def test_pod_whose_end_the_watch_has_missed_is_routed_no_more(routed: Routed) -> None:
    """The event is lost for good: only a new list shows that there is no such pod."""
    await routed.store.delete(POD, "models", "chat-1")
    routed.store.forget_history()
    await eventually(lambda: routed.hosts() == {"10.0.0.2"})


async def test_address_of_a_pod_that_is_gone_may_be_anothers(routed: Routed) -> None:
    """Addresses are used again, by pods of other services too."""
    await routed.store.delete(POD, "models", "chat-1")
    await routed.add("chat-3", "10.0.0.1")
    await eventually(
        lambda: (
            {pod["metadata"]["name"] for pod in routed.index.pods_of(CHAT)}
            == {
                "chat-2",
                "chat-3",
            }
        )
    )
    await routed.store.delete(POD, "models", "chat-3")
    await eventually(lambda: routed.hosts() == {"10.0.0.2"})


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": [{"type": "Ready", "status": "False"}]},
        {"conditions": [{"type": "Ready", "status": "Unknown"}]},
        {"conditions": []},
        {"podIP": None},
    ],
    ids=["not-ready", "node-is-silent", "no-conditions", "no-address"],
)
async def test_pod_that_does_not_serve_is_not_routed(
    routed: Routed, status: dict[str, Any]
) -> None:
    await routed.store.write_status(POD, "models", "chat-1", status, None)
    await eventually(lambda: routed.hosts() == {"10.0.0.2"})


async def test_pod_on_its_way_out_is_not_routed_though_it_still_serves(routed: Routed) -> None:
    """production-stack 601: a terminating pod is ready until its probe fails."""
    await routed.add("chat-3", "10.0.0.3", finalizers=["test/keeps-it-for-a-while"])
    await eventually(lambda: "10.0.0.3" in routed.hosts())
    await routed.store.delete(POD, "models", "chat-3")
    leaving = await routed.store.get(POD, "models", "chat-3")
    assert leaving["status"]["conditions"] == READY["conditions"]
    await eventually(lambda: routed.hosts() == {"10.0.0.1", "10.0.0.2"})


async def test_call_for_a_pod_that_went_unseen_is_answered_by_another() -> None:
    """Between a pod's end and the news of it its endpoint is listed, and nobody listens there."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        writer.close()

    alive = await asyncio.start_server(answer, "127.0.0.1", 0)
    gone = await asyncio.start_server(answer, "127.0.0.1", 0)
    ports = [server.sockets[0].getsockname()[1] for server in (alive, gone)]
    gone.close()
    await gone.wait_closed()
    proxy = HoldingProxy("127.0.0.1", 0, lambda: tuple(Address("127.0.0.1", p) for p in ports))
    await proxy.start()
    async with alive, httpx.AsyncClient(timeout=60) as client:
        url = f"http://127.0.0.1:{proxy.port}/v1/models"
        assert [(await client.get(url)).status_code for _ in range(4)] == [200] * 4
    proxy.close()
    await proxy.finish()


class Sleeping(World):
    """A service without pods, whose calls are held by the operator at `activator`."""

    def __init__(self) -> None:
        scaling = {"minReplicas": 0, "maxReplicas": 2}
        super().__init__(inference_service(replicas=None, scaling=scaling))
        self.activator = Address("10.9.0.1", 9000)

    async def observe(self) -> Observed:
        return replace(await super().observe(), demand=Demand(activator=self.activator))

    async def endpoints(self) -> list[str]:
        await self.settle()
        slices = (await self.store.list_objects(ENDPOINT_SLICE, "models", {})).items
        return [host for item in slices for end in item["endpoints"] for host in end["addresses"]]


async def test_endpoint_of_an_operator_that_is_gone_gives_way_to_the_next_ones() -> None:
    """The activator's address is a pod's too, and another operator has another."""
    world = Sleeping()
    assert await world.endpoints() == ["10.9.0.1"]
    world.activator = Address("10.9.0.2", 9007)
    assert await world.endpoints() == ["10.9.0.2"]
    (only,) = (await world.store.list_objects(ENDPOINT_SLICE, "models", {})).items
    assert only["ports"][0]["port"] == 9007
    assert only["metadata"]["ownerReferences"][0]["uid"]
    await world.all_ready(1)
    assert await world.endpoints() == []

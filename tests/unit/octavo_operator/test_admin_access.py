"""The key to workers' admin ports: made once, kept, waited for, shown where it belongs only."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from faulty_cluster import FaultyCluster
from octavo_operator.cluster.admin_access import AdminAccess, load_admin_access
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import (
    ClusterError,
    ConflictError,
    ForbiddenError,
    SettingsError,
    UnavailableError,
)
from octavo_operator.labels import LABEL_ADMIN_PORT, LABEL_SERVICE
from octavo_operator.manifests.kinds import SECRET
from octavo_operator.worker_client import WorkerClient, WorkerEndpoint

HOME, NAME = "octavo-system", "octavo-operator-admin-key"
CHAT = ("models", "chat")


def pod(labels: dict[str, str], host: str | None = "10.0.0.1") -> dict[str, Any]:
    metadata = {"name": "chat-1", "namespace": "models", "labels": labels}
    return {"metadata": metadata, "status": {"podIP": host} if host else {}}


@pytest.fixture
def cluster() -> FaultyCluster:
    return FaultyCluster(ObjectStore(seed=1))


async def test_key_is_made_once_and_outlives_the_operator(cluster: FaultyCluster) -> None:
    first = await load_admin_access(cluster, HOME, NAME)
    secret = await cluster.get(SECRET, HOME, NAME)
    assert secret["immutable"] is True
    assert len(base64.b64decode(secret["data"]["key"])) == 32
    second = await load_admin_access(cluster, HOME, NAME)
    assert first.key_sha256(CHAT) == second.key_sha256(CHAT)
    other = await load_admin_access(cluster, "elsewhere", NAME)
    assert first.key_sha256(CHAT) != other.key_sha256(CHAT)


async def test_two_operators_that_start_at_once_share_a_key(cluster: FaultyCluster) -> None:
    accesses = await asyncio.gather(*(load_admin_access(cluster, HOME, NAME) for _ in range(4)))
    assert len({access.key_sha256(CHAT) for access in accesses}) == 1


@pytest.mark.parametrize(
    "error",
    [ForbiddenError("HTTP 403"), UnavailableError("HTTP 500"), ConflictError("HTTP 409")],
    ids=lambda error: type(error).__name__,
)
async def test_what_stands_in_the_way_is_said_and_waited_out(
    error: ClusterError, cluster: FaultyCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.faults = [None, error] * 3
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    access = await load_admin_access(cluster, HOME, NAME, sleep)
    assert access.key_sha256(CHAT)
    assert cluster.calls["create Secret"] == 4
    if isinstance(error, ConflictError):
        assert pauses == []
    else:
        assert pauses == [1.0, 2.0, 4.0]
        assert f"{HOME}/{NAME}" in caplog.text
        assert "create secrets" in caplog.text


@pytest.mark.parametrize("data", [None, {}, {"key": "c2hvcnQ="}, {"key": "not base64"}])
async def test_secret_of_somebody_else_is_not_taken_for_the_key(
    data: dict[str, str] | None, cluster: FaultyCluster
) -> None:
    await cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": NAME, "namespace": HOME},
            "data": data,
        }
    )
    with pytest.raises(SettingsError, match="holds no key of 32 bytes"):
        await load_admin_access(cluster, HOME, NAME)


def test_each_service_has_a_key_of_its_own() -> None:
    access = AdminAccess(b"x" * 32)
    services = [("a", "b"), ("a", "c"), ("b", "b"), ("ab", "c"), ("a", "bc")]
    assert len({access.key_sha256(service) for service in services}) == len(services)


def test_pod_of_an_operator_without_admin_ports_is_reached_on_its_one_port() -> None:
    access = AdminAccess.for_this_run()
    labels = {LABEL_SERVICE: "chat"}
    old, new = pod(labels), pod({**labels, LABEL_ADMIN_PORT: "8001"})
    assert access.endpoint(old) == WorkerEndpoint("10.0.0.1", 8000, None)
    found = access.endpoint(new)
    assert found is not None
    assert (found.host, found.port) == ("10.0.0.1", 8001)
    assert found.key is not None
    assert found.key not in repr(found)
    assert access.endpoint(pod(labels, host=None)) is None


async def test_key_is_not_shown_where_none_is_asked_for() -> None:
    """Health is open to all; who answers there need not be a worker yet."""
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b'HTTP/1.0 200 OK\r\n\r\n{"open_requests": 0, ')
        await writer.drain()
        await asyncio.sleep(0.01)  # so that the answer comes in two parts
        writer.write(b'"idle_s": 1.5}')
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        worker = WorkerEndpoint("127.0.0.1", server.sockets[0].getsockname()[1], "root-key")
        report = await WorkerClient(timeout_s=60.0).load(worker)
        await WorkerClient(timeout_s=60.0).ask(worker, "POST", "/v1/load_lora_adapter", {"a": 1})
    assert report.idle_s == 1.5
    assert b"root-key" not in heard[0]
    assert b"Authorization: Bearer root-key\r\n" in heard[1]

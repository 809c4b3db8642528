"""What the operator's worker client asks, of the worker's real routes over real sockets."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from fake_engine import FakeEngine
from octavo.config import ServerConfig
from octavo_operator.cluster.admin_access import AdminAccess
from octavo_operator.labels import LABEL_ADMIN_PORT, LABEL_SERVICE
from octavo_operator.manifests.worker_command import ADMIN_PORT
from octavo_operator.worker_client import WorkerClient, WorkerEndpoint
from running_server import running_server

CHAT = ("models", "chat")


def endpoint(url: str, key: str | None = None) -> WorkerEndpoint:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return WorkerEndpoint(parts.hostname, parts.port, key)


def key_to(access: AdminAccess, namespace: str, service: str) -> str | None:
    """What the operator would show to a pod of that service."""
    labels = {LABEL_SERVICE: service, LABEL_ADMIN_PORT: str(ADMIN_PORT)}
    pod = {"metadata": {"namespace": namespace, "labels": labels}, "status": {"podIP": "10.0.0.1"}}
    found = access.endpoint(pod)
    return found.key if found is not None else None


async def test_worker_client_reads_start_and_load_on_either_port_without_a_key() -> None:
    config = ServerConfig(
        shutdown_timeout_s=1.0, api_keys=("secret",), admin_port=0, admin_key_hashes=("0" * 64,)
    )
    async with running_server(FakeEngine(), config) as server:
        for url in (server.url, server.admin_url):
            workers, worker = WorkerClient(), endpoint(url)
            phases_s = await workers.startup_phases_s(worker)
            assert phases_s == dict(server.engine.progress().finished)
            load = await workers.load(worker)
            assert load.open_requests == 0
            assert load.idle_s >= 0


async def test_operators_key_opens_the_admin_port_of_its_service_only() -> None:
    access = AdminAccess.for_this_run()
    told = access.key_sha256(CHAT)
    config = ServerConfig(
        shutdown_timeout_s=1.0, admin_port=0, admin_host="0.0.0.0", admin_key_hashes=(told,)
    )
    own = key_to(access, *CHAT)
    assert own is not None
    assert hashlib.sha256(own.encode()).hexdigest() == told
    others = (
        None,
        told,  # what everybody may read in the pod
        key_to(access, "models", "other"),
        key_to(access, "others", "chat"),
        key_to(AdminAccess.for_this_run(), *CHAT),
    )
    async with running_server(FakeEngine(), config) as server:
        workers = WorkerClient()
        status, answer = await workers.ask(endpoint(server.admin_url, own), "GET", "/v1/requests")
        assert (status, answer["open"]) == (200, [])
        cancel = "/v1/requests/x/cancel"
        status, _ = await workers.ask(endpoint(server.admin_url, own), "POST", cancel, {})
        assert status == 404  # no such request; a stranger gets 401
        for key in others:
            for method, path in (("GET", "/v1/requests"), ("POST", cancel)):
                status, _ = await workers.ask(endpoint(server.admin_url, key), method, path)
                assert status == 401

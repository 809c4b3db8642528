"""What the operator's worker client reads, from the worker's real routes over a real socket."""

from __future__ import annotations

from urllib.parse import urlsplit

from fake_engine import FakeEngine
from octavo.config import ServerConfig
from octavo_operator.worker_client import WorkerClient
from running_server import running_server


async def test_worker_client_reads_start_and_load_without_a_key() -> None:
    config = ServerConfig(shutdown_timeout_s=1.0, api_keys=("secret",))
    async with running_server(FakeEngine(), config) as server:
        parts = urlsplit(server.url)
        assert parts.hostname is not None
        assert parts.port is not None
        workers = WorkerClient()
        phases_s = await workers.startup_phases_s(parts.hostname, parts.port)
        assert phases_s == dict(server.engine.progress().finished)
        load = await workers.load(parts.hostname, parts.port)
    assert load.open_requests == 0
    assert load.idle_s >= 0

"""Loading, draining, dying: what probes and clients see over real connections."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from fake_engine import FakeEngine, expected_text
from octavo.config import ServerConfig
from octavo.engine.interface import EngineState
from octavo.errors import ConfigError, ModelLoadError
from octavo.server import lifecycle
from octavo.server.app import create_app
from octavo.server.context import ServerContext
from octavo.server.errors import ApiError
from octavo.server.listening import allow_many_connections, open_listener
from polling import until
from running_server import RunningServer, running_server

SUPPORT = Path(__file__).parents[3] / "support"


async def health(client: httpx.AsyncClient) -> list[int]:
    paths = ("/health/live", "/health/ready", "/health", "/ping")
    return [(await client.get(path)).status_code for path in paths]


async def start_stream(
    client: httpx.AsyncClient, server: RunningServer, max_tokens: int = 100
) -> asyncio.Task[httpx.Response]:
    """A streamed request that the engine has accepted."""
    body = {"prompt": "ab", "max_tokens": max_tokens, "stream": True}
    task = asyncio.create_task(client.post("/v1/completions", json=body))
    await until(lambda: server.engine.open_ids)
    return task


def text_of(response: httpx.Response) -> str:
    lines = [line[6:] for line in response.text.split("\n\n") if line]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks if "choices" in chunk)


async def test_it_listens_while_the_model_loads() -> None:
    engine = FakeEngine(ready=False)
    async with (
        running_server(engine) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        assert await health(client) == [200, 503, 503, 503]
        assert (await client.get("/health/ready")).json() == {"status": "loading: weights"}
        refused = await client.post("/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert "still being loaded" in refused.json()["error"]["message"]
        assert (await client.get("/v1/models")).status_code == 503
        assert "octavo_startup_phase_seconds" in (await client.get("/metrics")).text
        engine.become_ready()
        await server.listener.is_ready.wait()
        assert await health(client) == [200, 200, 200, 200]
        assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 200
        assert await server.stop() == 0
    assert server.listener.phases[0] == "weights"
    assert server.listener.ready_models == ["toy/bytes"]
    assert engine.closed


async def test_load_error_ends_the_server() -> None:
    engine = FakeEngine(ready=False)
    async with running_server(engine) as server:
        engine.fail_to_load(ModelLoadError("No such file."))
        with pytest.raises(ModelLoadError, match="No such file"):
            await server.task
    assert engine.closed


async def test_stop_while_loading_is_clean() -> None:
    async with running_server(FakeEngine(ready=False)) as server:
        assert await server.stop() == 0


async def test_drain_finishes_open_requests_and_refuses_new_ones() -> None:
    engine = FakeEngine()
    async with (
        running_server(engine) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        engine.gate.clear()
        stream = await start_stream(client, server)
        server.lifecycle.stop()
        await until(lambda: server.listener.drained_with)
        assert await health(client) == [200, 503, 503, 503]
        refused = await client.post("/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
        engine.gate.set()
        assert text_of(await stream) == expected_text("ab", 0, 100)
        assert await server.task == 0
    assert server.listener.drained_with == [1]
    assert engine.aborted_ids == []


async def test_leaving_server_answers_what_still_comes_and_lets_connections_go() -> None:
    """Endpoints are removed while SIGTERM is under way; kept connections send on even longer."""
    engine = FakeEngine()
    config = ServerConfig(shutdown_timeout_s=5.0, shutdown_delay_s=30.0)
    async with (
        running_server(engine, config) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        kept = await client.post("/v1/completions", json={"prompt": "a"})
        assert "connection" not in kept.headers
        server.lifecycle.stop()
        await until(lambda: server.listener.drained_with)
        assert (await client.get("/health/ready")).status_code == 503
        late = await client.post("/v1/completions", json={"prompt": "a"})
        assert late.status_code == 200
        assert late.headers["connection"] == "close"
        async with httpx.AsyncClient(base_url=server.url) as newcomer:
            answer = await newcomer.post("/v1/completions", json={"prompt": "a"})
            assert answer.status_code == 200
        engine.die()
        await server.task


async def test_engine_that_was_ended_with_its_server_is_not_called_dead() -> None:
    """Requests that arrive while the server closes are to go elsewhere; nothing is amiss."""
    engine = FakeEngine()
    context: ServerContext = create_app(engine, ServerConfig()).state.context
    engine.die()
    with pytest.raises(ApiError, match="has died"):
        context.ready_model()
    context.is_leaving = True
    with pytest.raises(ApiError, match="shutting down; ask another replica") as caught:
        context.ready_model()
    assert (caught.value.status, caught.value.code) == (503, "engine_draining")


async def test_connection_of_a_stream_that_outlasts_the_delay_ends_with_it() -> None:
    engine = FakeEngine()
    config = ServerConfig(shutdown_timeout_s=30.0, shutdown_delay_s=0.05)
    async with (
        running_server(engine, config) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        engine.gate.clear()
        stream = await start_stream(client, server)
        server.lifecycle.stop()
        await until(lambda: server.lifecycle._engine.state is EngineState.DRAINING)
        engine.gate.set()
        assert text_of(await stream) == expected_text("ab", 0, 100)
        assert await server.task == 0
    assert engine.aborted_ids == []


async def test_load_tells_open_requests_and_idle_time() -> None:
    engine = FakeEngine()
    async with (
        running_server(engine) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        engine.gate.clear()
        stream = await start_stream(client, server)
        busy = (await client.get("/health/load")).json()
        assert busy == {"open_requests": 1, "idle_s": 0.0}
        engine.gate.set()
        await stream
        idle = (await client.get("/health/load")).json()
        assert idle["open_requests"] == 0
        await asyncio.sleep(0.01)
        assert (await client.get("/health/load")).json()["idle_s"] > idle["idle_s"]


async def test_startup_tells_the_phases() -> None:
    engine = FakeEngine()
    async with (
        running_server(engine) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        told = (await client.get("/health/startup")).json()
    assert told["state"] == "ready"
    assert told["phases_s"] == dict(engine.progress().finished)
    assert told["phases_s"]


async def test_drain_ends_what_takes_too_long() -> None:
    engine = FakeEngine(step_s=0.01)
    config = ServerConfig(shutdown_timeout_s=0.1)
    async with (
        running_server(engine, config) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        stream = await start_stream(client, server, max_tokens=500)
        assert await server.stop() == 0
        response = await stream
    assert '"finish_reason":"abort"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")


async def test_a_request_that_is_not_complete_when_the_server_ends_is_told_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifecycle, "_FLUSH_LIMIT_S", 1.0)
    async with running_server(FakeEngine()) as server:
        await server.listener.is_ready.wait()
        where = httpx.URL(server.url)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"prompt":'
        )
        context = server.lifecycle._context
        await until(lambda: bool(list(context.ledger.open)))
        assert await server.stop() == 0
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == "engine_draining"
    assert context.ledger.outcomes["refused"] == 1
    assert "Exception in ASGI application" not in caplog.text


async def test_a_server_that_ends_answers_who_has_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also whom the event loop has not come to yet, and who says what it wants a moment later."""
    request = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    clients = [socket.socket() for _ in range(20)]
    end = lifecycle._HttpServer.shutdown

    async def connect_and_end(
        http: lifecycle._HttpServer, sockets: list[socket.socket] | None = None
    ) -> None:
        for number, client in enumerate(clients if sockets else ()):
            client.connect(address)
            if number % 2:
                client.sendall(request)
        ending = asyncio.create_task(end(http, sockets))
        await asyncio.sleep(0.05)
        for client in clients[::2] if sockets else ():
            client.sendall(request)
        await ending

    monkeypatch.setattr(lifecycle._HttpServer, "shutdown", connect_and_end)
    async with running_server(FakeEngine()) as server:
        address = (httpx.URL(server.url).host, httpx.URL(server.url).port)
        assert await server.stop() == 0
    for client in clients:
        client.settimeout(20)
        answer = client.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"engine_draining"' in answer
        client.close()


async def test_an_engine_that_has_gone_when_a_server_leaves_is_told_as_its_leaving() -> None:
    engine = FakeEngine()
    async with (
        running_server(engine) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        engine.gate.clear()
        asking = asyncio.create_task(
            client.post("/v1/completions", json={"prompt": "zz", "max_tokens": 5})
        )
        await until(lambda: engine.open_ids)
        server.lifecycle.stop()
        context = server.lifecycle._context
        await until(lambda: context.is_leaving)
        engine.die()
        await server.task
        answer = await asking
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_draining")
    assert context.ledger.outcomes["failed"] == 0


async def test_death_of_the_engine_is_told_to_open_requests_and_ends_the_server() -> None:
    engine = FakeEngine()
    async with (
        running_server(engine) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        engine.gate.clear()
        whole = asyncio.create_task(
            client.post("/v1/completions", json={"prompt": "zz", "max_tokens": 5})
        )
        stream = await start_stream(client, server)
        await until(lambda: len(engine.open_ids) == 2)
        engine.die()
        assert await server.task == 1
        streamed, plain = await stream, await whole
    assert plain.status_code == 503
    assert plain.json()["error"]["code"] == "engine_dead"
    assert streamed.status_code == 503 or '"code":"engine_dead"' in streamed.text


async def test_health_is_red_at_once_when_the_engine_dies(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.die()
    assert await health(client) == [503, 503, 503, 503]


async def test_health_is_red_when_no_step_ends(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.counters.last_progress_age_s = 31.0
    engine.counters.is_late = True
    response = await client.get("/health/ready")
    assert response.status_code == 503
    assert "31 s" in response.json()["status"]
    assert (await client.get("/health/live")).status_code == 200


def test_port_in_use_is_one_sentence() -> None:
    with open_listener("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port} on 127.0.0.1 is in use.*--port"):
            open_listener("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "words"), [("no.such.host.invalid", "resolved"), ("192.0.2.1", "no address")]
)
def test_wrong_host_is_one_sentence(host: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_listener(host, 0)


def test_few_open_files_are_raised_to_what_is_allowed() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        allow_many_connections()
        most = before[1] if before[1] != resource.RLIM_INFINITY else 65_536
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(most, 65_536), before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def start_process(step_s: float = 0.0) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "fake_server_process", str(step_s)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_and_exits_with_zero(number: signal.Signals) -> None:
    process, url = start_process(step_s=0.02)
    with process, httpx.Client(base_url=url) as client:
        body = {"prompt": "ab", "max_tokens": 20, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(number)
            rest = list(lines)
        assert process.wait(30) == 0
        assert rest[-2] == "data: [DONE]"
        assert process.stderr is not None
        events = [json.loads(line)["event"] for line in process.stderr]
    assert events == ["loaded", "loaded", "ready", "draining"]


def test_second_signal_ends_at_once() -> None:
    process, url = start_process(step_s=5.0)
    with process, httpx.Client(base_url=url) as client:
        body = {"prompt": "ab", "max_tokens": 500, "stream": True}
        errors = []

        def ask() -> None:
            try:
                client.post("/v1/completions", json=body, timeout=60)
            except httpx.HTTPError as error:
                errors.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        running = 'vllm:num_requests_running{engine="0",model_name="toy/bytes"} 1.0'
        while running not in client.get("/metrics").text:
            pass
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        for line in process.stderr:
            if '"draining"' in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        asking.join(30)
    assert errors

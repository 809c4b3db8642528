"""A client that leaves frees what it held; a client that is slow holds up nobody."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine, expected_text
from octavo.config import ServerConfig
from octavo.server.app import create_app
from polling import until
from running_server import running_server

BODY = {"prompt": "ab", "max_tokens": 400}


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("is_queued", [True, False], ids=["queued", "running"])
@pytest.mark.parametrize("prompt", ["ab", ["ab", "cd"]], ids=["one-prompt", "two-prompts"])
async def test_disconnect_aborts(stream: bool, is_queued: bool, prompt: Any) -> None:
    engine = FakeEngine(step_s=0.005)
    if is_queued:
        engine.gate.clear()
    async with running_server(engine) as server, httpx.AsyncClient(base_url=server.url) as client:
        await server.listener.is_ready.wait()
        body = BODY | {"prompt": prompt, "stream": stream}
        asking = asyncio.create_task(client.post("/v1/completions", json=body))
        await until(lambda: len(engine.open_ids) == 1)
        if not is_queued:
            await until(lambda: engine.events_made > 3)
        asking.cancel()
        await until(lambda: not engine.open_ids)
        assert len(engine.aborted_ids) == 1
        engine.gate.set()
        engine.step_s = 0.0
        page = (await client.get("/metrics")).text
        assert "octavo_client_disconnects_total{" in page
        line = next(x for x in page.splitlines() if x.startswith("octavo_client_disconnects_total"))
        assert line.endswith(" 1.0")
        labels = 'engine="0",model_name="toy/bytes",outcome="aborted"'
        assert f"octavo_requests_total{{{labels}}} 1.0" in page
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200


async def test_a_client_that_leaves_with_a_second_request_waiting_aborts_the_first() -> None:
    engine = FakeEngine(step_s=0.005)
    async with running_server(engine) as server:
        await server.listener.is_ready.wait()
        where = httpx.URL(server.url)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        body = json.dumps(BODY | {"stream": True}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        writer.write(2 * request)
        await reader.readuntil(b"data: ")
        writer.transport.abort()
        await until(lambda: not engine.open_ids)
        assert len(engine.aborted_ids) == 1
        async with httpx.AsyncClient(base_url=server.url) as client:
            page = (await client.get("/metrics")).text
        labels = 'engine="0",model_name="toy/bytes",outcome='
        assert f'octavo_requests_total{{{labels}"aborted"}} 1.0' in page
        assert f'octavo_requests_total{{{labels}"failed"}} 0.0' in page


async def test_many_aborted_requests_leave_no_task_no_request_and_no_file() -> None:
    engine = FakeEngine(step_s=0.001)
    async with running_server(engine) as server, httpx.AsyncClient(base_url=server.url) as client:
        await server.listener.is_ready.wait()
        tasks_before, files_before = len(asyncio.all_tasks()), num_open_files()
        for _ in range(10):
            asking = [
                asyncio.create_task(client.post("/v1/completions", json=BODY | {"stream": flag}))
                for flag in (True, False) * 20
            ]
            await until(lambda: len(engine.open_ids) == 40)
            for task in asking:
                task.cancel()
            await until(lambda: not engine.open_ids)
        await until(lambda: len(asyncio.all_tasks()) <= tasks_before)
        await until(lambda: num_open_files() <= files_before)
        assert len(engine.aborted_ids) == 400


async def test_concurrent_streams_are_not_crossed() -> None:
    engine = FakeEngine(step_s=0.001)
    async with running_server(engine) as server, httpx.AsyncClient(base_url=server.url) as client:
        await server.listener.is_ready.wait()

        async def ask(number: int) -> None:
            body = {"prompt": f"p{number}", "max_tokens": 20 + number % 7, "stream": True}
            response = await client.post("/v1/completions", json=body, timeout=60)
            lines = [line[6:] for line in response.text.split("\n\n") if line]
            text = "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])
            assert text == expected_text(f"p{number}", 0, 20 + number % 7)

        async with asyncio.TaskGroup() as group:
            for number in range(64):
                group.create_task(ask(number))
        assert engine.aborted_ids == []


async def test_slow_reader_gets_all_text_in_fewer_chunks() -> None:
    engine = FakeEngine()
    app = create_app(engine, ServerConfig())
    reading = asyncio.Event()
    sent: list[dict[str, Any]] = []
    body = json.dumps(BODY | {"stream": True}).encode()
    requests = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if requests:
            return requests.pop()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if len(sent) > 3:
            await reading.wait()

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
    }
    answering = asyncio.create_task(app(scope, receive, send))  # type: ignore[arg-type]
    await until(lambda: engine.events_made == BODY["max_tokens"])
    assert len(sent) == 4
    reading.set()
    await answering
    lines = b"".join(message.get("body", b"") for message in sent).decode().split("\n\n")
    chunks = [json.loads(line[6:]) for line in lines if line and line != "data: [DONE]"]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == expected_text("ab", 0, 400)
    assert len(chunks) < 10

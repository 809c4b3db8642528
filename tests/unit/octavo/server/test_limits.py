"""Every bound on what a client may send: that there is one for each field, and that it holds."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from pydantic import ValidationError

from fake_engine import FakeEngine
from octavo.config import ServerConfig
from octavo.server import http_protocol
from octavo.server.app import create_app
from octavo.server.body import validate
from octavo.server.errors import ApiError
from octavo.server.limits import (
    MAX_HEADER_BYTES,
    MAX_JSON_DEPTH,
    MAX_JSON_PARTS,
    MAX_PIPELINED,
    json_depth,
    json_parts,
)
from octavo.server.protocol.chat import ChatCompletionRequest
from octavo.server.protocol.completion import CompletionRequest
from octavo.server.protocol.fields import RequestBody
from octavo.server.protocol.responses import ResponseRequest
from running_server import running_server

FREE_TEXTS = {
    "text",
    "content",
    "prompt",
    "arguments",
    "input",
    "output",
    "instructions",
    "suffix",
    "documents",
    "reasoning_content",
}
"""Fields whose strings and lists are as long as the body may be."""
FREE_OBJECTS = {"schema", "parameters", "json", "chat_template_kwargs"}
"""Fields with a shape of their own, which whoever reads them bounds."""
UNBOUNDED_INTEGERS = {"prompt", "input"}
"""Token ids: the route compares them with the model's vocabulary."""


def request_schemas() -> dict[str, dict[str, Any]]:
    document = create_app(FakeEngine(), ServerConfig()).openapi()
    return {
        path: operation["requestBody"]["content"]["application/json"]["schema"]
        for path, item in document["paths"].items()
        for operation in item.values()
        if "requestBody" in operation
    }


def unbounded(schema: Any, path: str = "") -> Iterator[str]:
    """Where a number, list or string may be as large as it likes."""
    name = path.rpartition(".")[2]
    if not isinstance(schema, dict) or name in FREE_OBJECTS:
        return
    kind, is_fixed = schema.get("type"), "enum" in schema or "const" in schema
    if kind == "integer" and name not in UNBOUNDED_INTEGERS and not is_fixed:
        if "maximum" not in schema and "exclusiveMaximum" not in schema:
            yield f"{path}: integer"
    elif kind == "string" and name not in FREE_TEXTS and not is_fixed:
        if "maxLength" not in schema and "pattern" not in schema:
            yield f"{path}: string"
    elif kind == "array" and name not in FREE_TEXTS and "maxItems" not in schema:
        yield f"{path}: list"
    for key, part in schema.get("properties", {}).items():
        yield from unbounded(part, f"{path}.{key}")
    for key in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(key, ()):
            yield from unbounded(part, path)
    yield from unbounded(schema.get("items"), path)
    yield from unbounded(schema.get("additionalProperties"), path)


@pytest.mark.parametrize("path", sorted(request_schemas()))
def test_every_field_of_every_body_has_a_bound(path: str) -> None:
    assert sorted(set(unbounded(request_schemas()[path]))) == []


@pytest.mark.parametrize(
    "field",
    [
        {"n": 10**400},
        {"seed": 2**63},
        {"max_tokens": 10**30},
        {"stop": ["x"] * 10_000},
        {"stop": ["x" * 100_000]},
        {"stop_token_ids": list(range(100_000))},
        {"logit_bias": {str(i): 1 for i in range(100_000)}},
        {"timeout": 1e300},
        {"logprobs": 10_000},
        {"user": "x" * 100_000},
        {"cache_salt": "x" * 100_000},
        {"prompt": ["a"] * 100_000},
    ],
    ids=lambda field: str(field)[:30],
)
async def test_value_past_its_bound_never_reaches_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, field: dict[str, Any]
) -> None:
    response = await client.post("/v1/completions", json={"prompt": "a"} | field)
    assert response.status_code == 400
    assert len(response.content) < 2_000
    assert engine.seen == []


MANY = {f"x{number}": "1" for number in range(5_000)}
WRONG_PART = {"type": "text", "text": 1}


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (CompletionRequest, {"prompt": "a", "logit_bias": MANY}),
        (CompletionRequest, {"prompt": "a", "metadata": dict.fromkeys(MANY, 1)}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": 1}] * 1000}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": [WRONG_PART] * 1000}]}),
        (ResponseRequest, {"input": [{"role": "user", "content": 1}] * 1000}),
        (ResponseRequest, {"input": [{"role": "user", "content": [WRONG_PART] * 1000}]}),
        (CompletionRequest, {"prompt": "a", **MANY}),
    ],
    ids=["biases", "metadata", "messages", "parts", "items", "items' parts", "fields"],
)
def test_of_many_faults_few_are_looked_for(model: type[RequestBody], body: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        validate(body, model)
    found = refused.value.__context__
    assert not isinstance(found, ValidationError) or found.error_count() < 20


@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH + 1, 500, 100_000])
async def test_body_nested_too_deeply_is_refused(client: httpx.AsyncClient, depth: int) -> None:
    body = '{"prompt": "a", "x": ' + "[" * depth + "]" * depth + "}"
    headers = {"Content-Type": "application/json"}
    response = await client.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert "nested too deeply" in response.json()["error"]["message"]


def test_depth_counts_lists_and_objects() -> None:
    assert [json_depth(each) for each in (1, [], [[1], {"a": [2]}])] == [0, 1, 3]


@pytest.mark.parametrize("part", ["[]", "{}", '{"a":1}', '["[[[",[]]'])
async def test_body_of_too_many_parts_is_refused_before_it_is_decoded(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(msgspec.json, "decode", decoded.append)
    body = '{"prompt": "a", "x": [' + ",".join([part] * MAX_JSON_PARTS) + "]}"
    headers = {"Content-Type": "application/json"}
    response = await client.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert f"at most {MAX_JSON_PARTS}" in response.json()["error"]["message"]
    assert decoded == []


@pytest.mark.parametrize("text", ["[{:", '\\"[', '\\\\"[', "\\\\[\\\\\\\\"])
async def test_what_a_text_says_is_no_part(client: httpx.AsyncClient, text: str) -> None:
    body = {"messages": [{"role": "user", "content": text * MAX_JSON_PARTS}]}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_parts_are_counted_across_the_pieces_of_a_text() -> None:
    strings = ['"[' + '\\\\\\"[:' * length + '"' for length in range(1, 400)]
    text = "[" + ",".join(f'{{"a":{string}}}' for string in strings * 5) + "]"
    assert len(json.loads(text)) == 1995
    assert text.count("[") > MAX_JSON_PARTS
    assert json_parts(text.encode()) == 1 + 2 * 1995


async def _refused(url: str, *pieces: bytes) -> bytes:
    """What the server says to these bytes before it closes."""
    where = httpx.URL(url)
    assert where.port is not None
    reader, writer = await asyncio.open_connection(where.host, where.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.01)
        return await reader.read()
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * (2 * MAX_HEADER_BYTES)],
        [b"GET /health HTTP/1.1\r\nHost: x\r\n", *[b"X-A: " + b"a" * 9000 + b"\r\n"] * 5],
        [b"GET /" + b"a" * (2 * MAX_HEADER_BYTES)],
        [b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 40_000 + b"\r\n\r\n"],
    ],
    ids=["one-endless", "many", "path", "complete"],
)
async def test_headers_past_the_limit_are_refused_while_they_come(pieces: list[bytes]) -> None:
    async with running_server(FakeEngine()) as server:
        answer = await _refused(server.url, *pieces)
        assert answer == b"reset" or b" 431 " in answer.split(b"\r\n")[0]
        async with httpx.AsyncClient(base_url=server.url) as client:
            assert (await client.get("/health")).status_code == 200


async def test_client_that_never_ends_its_headers_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.3)
    async with running_server(FakeEngine()) as server:
        assert await _refused(server.url) == b""
        assert await _refused(server.url, b"GET /health HTTP/1.1\r\nX-A: ") == b""
        where = httpx.URL(server.url)
        assert where.port is not None
        with socket.create_connection((where.host, where.port)) as connection:
            # The second request of a connection is watched as the first.
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
            await loop.sock_sendall(connection, request)
            assert b" 200 " in await loop.sock_recv(connection, 4096)
            await asyncio.sleep(0.5)
            await loop.sock_sendall(connection, request[:20])
            assert await loop.sock_recv(connection, 4096) == b""


async def test_client_that_never_ends_a_body_nobody_reads_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A byte after the answer must not keep the connection for good."""
    monkeypatch.setattr(http_protocol, "BODY_TIMEOUT_S", 0.3)
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    async with running_server(FakeEngine()) as server, asyncio.timeout(20):
        answer = await _refused(server.url, head, b"a", b"a")
        assert b" 404 " in answer.split(b"\r\n")[0]


async def test_client_that_takes_no_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "UNREAD_TIMEOUT_S", 0.3)
    asked = {"prompt": "a", "max_tokens": 2000, "n": 64, "logprobs": 20, "stream": True}
    body = json.dumps(asked).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    # One token of each choice at a time: told together, all would fit the system's buffers.
    engine = FakeEngine(step_s=0.001)
    async with running_server(engine) as server, asyncio.timeout(120):
        where = httpx.URL(server.url)
        assert where.port is not None
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((where.host, where.port))
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            while not engine.aborted_ids:
                await asyncio.sleep(0.01)


async def test_requests_ahead_of_answers_are_bounded() -> None:
    """They come in one piece, so to stop reading is too late."""
    request = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    async with running_server(FakeEngine()) as server:
        last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        answers = await _refused(server.url, request * MAX_PIPELINED + last)
        assert answers.count(b"HTTP/1.1 200 ") == MAX_PIPELINED + 1
        assert await _refused(server.url, request * 1000) in (b"", b"reset")


@pytest.mark.parametrize(("num_parts", "is_beside"), [(1, False), (1024, True)])
async def test_a_long_body_is_parsed_beside_the_event_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, num_parts: int, is_beside: bool
) -> None:
    threads: list[threading.Thread] = []

    def settle(document: dict[str, Any]) -> None:
        threads.append(threading.current_thread())

    monkeypatch.setattr(ChatCompletionRequest, "settle_unsupported", settle)
    parts = [{"type": "text", "text": "some text"}] * num_parts
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    await client.post("/v1/chat/completions", json=body)
    assert [thread is not threading.main_thread() for thread in threads] == [is_beside]

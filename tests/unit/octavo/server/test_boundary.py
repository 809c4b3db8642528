"""Keys, request ids, last-resort errors, log lines: what surrounds every route."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from octavo.config import ServerConfig
from octavo.server.app import create_app
from octavo.server.auth import OPEN_PATHS

KEYS = ("first-key", "second-key")


def client_for(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://octavo")


def locked_app() -> Any:
    return create_app(FakeEngine(), ServerConfig(api_keys=KEYS))


async def test_every_route_but_health_asks_for_a_key() -> None:
    app = locked_app()
    listed = {path for path in app.openapi()["paths"] if "{" not in path}
    assert {"/metrics", "/version", *OPEN_PATHS} <= listed
    paths = listed | {"/openapi.json", "/v1/models/x", "/no/such/route", "/health/", "//health"}
    async with client_for(app) as client:
        for path in sorted(paths):
            response = await client.get(path)
            if path in OPEN_PATHS:
                assert response.status_code == 200, path
            else:
                assert response.status_code == 401, path
                assert response.headers["www-authenticate"].startswith("Bearer")
                assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer first-key", 200),
        ("bearer second-key", 200),
        ("Bearer  first-key ", 200),
        ("Bearer first-keyx", 401),
        ("Bearer first-ke", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Basic first-key", 401),
        ("first-key", 401),
        ("Bearer \xff\xfe", 401),
    ],
)
async def test_only_known_bearer_tokens_open(header: str, status: int) -> None:
    async with client_for(locked_app()) as client:
        headers = [(b"authorization", header.encode("latin-1"))]
        response = await client.get("/v1/models", headers=headers)
    assert response.status_code == status


async def test_request_id_is_echoed_or_made(client: httpx.AsyncClient) -> None:
    echoed = await client.get("/version", headers={"X-Request-Id": "trace-1"})
    assert echoed.headers["x-request-id"] == "trace-1"
    made = [(await client.get("/version")).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    for unusable in ("a b", "x" * 129, ""):
        response = await client.get("/version", headers={"X-Request-Id": unusable})
        assert response.headers["x-request-id"] != unusable
    refused = await client.get("/nothing", headers={"X-Request-Id": "trace-2"})
    assert refused.headers["x-request-id"] == "trace-2"


async def test_request_id_becomes_part_of_the_answers_id(client: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"prompt": "a", "max_tokens": 1}
    headers = {"X-Request-Id": "trace-1"}
    by_header = await client.post("/v1/completions", json=body, headers=headers)
    assert by_header.json()["id"] == "cmpl-trace-1"
    by_body = await client.post(
        "/v1/completions", json=body | {"request_id": "mine"}, headers=headers
    )
    assert by_body.json()["id"] == "cmpl-mine"


async def test_bug_of_ours_is_told_without_its_details(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(FakeEngine):
        async def render_chat(self, *args: Any, **kwargs: Any) -> str:
            raise ZeroDivisionError("a secret")

        def stats(self) -> Any:
            raise ZeroDivisionError("a secret")

    app = create_app(Broken(), ServerConfig())
    async with client_for(app) as client:
        chat = {"messages": [{"role": "user", "content": "x"}]}
        for response in (
            await client.post("/v1/chat/completions", json=chat),
            await client.get("/health"),
        ):
            assert response.status_code == 500
            assert response.json()["error"]["type"] == "server_error"
            assert "secret" not in response.text
            assert response.headers["x-request-id"] in caplog.text
    assert caplog.text.count("ZeroDivisionError: a secret") >= 2


async def test_log_line_tells_status_and_id_but_no_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="octavo")
    app = create_app(FakeEngine(), ServerConfig(log_requests=True))
    async with client_for(app) as client:
        body = {"prompt": "a secret prompt", "max_tokens": 1}
        await client.post("/v1/completions", json=body, headers={"X-Request-Id": "trace-1"})
        await client.get("/health")
    (record,) = [record for record in caplog.records if record.getMessage() == "request"]
    fields = record.fields  # type: ignore[attr-defined]
    assert (fields["id"], fields["status"], fields["path"]) == ("trace-1", 200, "/v1/completions")
    assert "secret" not in json.dumps(fields)


async def test_deadline_before_the_first_token_is_a_timeout(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.finish_with = "deadline"
    response = await client.post("/v1/completions", json={"prompt": "a"})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"


async def test_openapi_lists_what_is_served(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics"} <= set(
        document["paths"]
    )
    operation = document["paths"]["/v1/chat/completions"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["messages"]
    assert schema["properties"]["functions"]["enum"] == [None, []]
    assert "$ref" not in json.dumps(schema)
    assert {"400", "429", "503"} <= set(operation["responses"])

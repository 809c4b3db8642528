"""One end for every request, seen by administrators; deadlines; cancelling; the admin port."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from fake_engine import FakeEngine, expected_text
from octavo.config import ServerConfig
from octavo.server.app import create_admin_app, create_app
from octavo.server.requests import COUNTED_PATHS, Outcome
from polling import until
from running_server import running_server

BODY: dict[str, Any] = {"prompt": "ab", "max_tokens": 5}
ADMIN = {"Authorization": "Bearer root"}
ROOT_HASH = hashlib.sha256(b"root").hexdigest()


def client_of(app: Any, host: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(host, 4321))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


def outcomes_of(app: Any) -> dict[str, int]:
    ledger = app.state.context.ledger
    assert not list(ledger.open)
    return {name: count for name, count in ledger.outcomes.items() if count}


# ---- Outcomes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "setup", "status", "outcome"),
    [
        (BODY, {}, 200, "finished"),
        (BODY | {"stream": True}, {}, 200, "finished"),
        (BODY, {"finish_with": "deadline"}, 504, "deadline"),
        (BODY | {"stream": True}, {"finish_with": "deadline"}, 504, "deadline"),
        (BODY, {"finish_with": "abort"}, 503, "aborted"),
        (BODY | {"n": 1000}, {}, 400, "refused"),
        (BODY | {"model": "other"}, {}, 404, "refused"),
        (BODY, {"max_open": 0}, 429, "refused"),
        (BODY, {"fail_midway": "boom"}, 500, "failed"),
        (BODY | {"stream": True}, {"fail_midway": "boom"}, 200, "failed"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_every_request_ends_in_exactly_one_way(
    body: dict[str, Any], setup: dict[str, Any], status: int, outcome: str
) -> None:
    engine = FakeEngine()
    for name, value in setup.items():
        setattr(engine, name, value)
    app = create_app(engine, ServerConfig())
    async with client_of(app) as client:
        assert (await client.post("/v1/completions", json=body)).status_code == status
        listed = (await client.get("/v1/requests")).json()
    assert outcomes_of(app) == {outcome: 1}
    assert [each["outcome"] for each in listed["ended"]] == [outcome]


async def test_what_never_reached_a_route_is_refused_too() -> None:
    app = create_app(FakeEngine(ready=False), ServerConfig(api_keys=("key",)))
    async with client_of(app) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            response = await client.post("/v1/completions", json=BODY, headers=headers)
            assert response.status_code == 401
        headers = {"Authorization": "Bearer key"}
        response = await client.post("/v1/completions", json=BODY, headers=headers)
        assert response.status_code == 503
        huge = {**headers, "X-Padding": "x" * 40_000}
        response = await client.post("/v1/completions", json=BODY, headers=huge)
        assert response.status_code == 431
        await client.get("/v1/models", headers=headers)
    assert outcomes_of(app) == {"refused": 4}


async def test_counted_paths_are_routes() -> None:
    app = create_app(FakeEngine(), ServerConfig())
    assert set(app.openapi()["paths"]) >= COUNTED_PATHS


# ---- Deadlines -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "timeout_s"),
    [
        ({}, {}, None),
        ({"timeout": 30}, {}, 30.0),
        ({"timeout": 2.5}, {"X-Request-Timeout": "7"}, 2.5),
        ({}, {"X-Request-Timeout": "7"}, 7.0),
        ({"timeout": 9}, {"X-Request-Timeout": "7.5"}, 7.5),
    ],
)
async def test_deadline_comes_from_body_or_header_and_starts_at_arrival(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    body: dict[str, Any],
    headers: dict[str, str],
    timeout_s: float | None,
) -> None:
    await client.post("/v1/completions", json=BODY | body, headers=headers)
    seen = engine.seen[0][2].timeout_s
    if timeout_s is None:
        assert seen is None
    else:
        assert 0 < seen < timeout_s


@pytest.mark.parametrize("value", ["", "x", "nan", "inf", "0", "-1", "1e9"])
async def test_header_that_is_no_time_is_refused_by_name(
    client: httpx.AsyncClient, value: str
) -> None:
    headers = {"X-Request-Timeout": value}
    response = await client.post("/v1/completions", json=BODY, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "X-Request-Timeout"


async def test_time_that_is_up_before_the_engine_is_asked_is_a_timeout(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = BODY | {"timeout": 1e-9}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 504
    assert response.json()["error"] == {
        "message": "The request's time was up before its first token; "
        "allow more time or retry when the server is less busy.",
        "type": "timeout_error",
        "param": None,
        "code": "deadline_exceeded",
    }
    assert engine.seen == []


# ---- What administrators see and do ----------------------------------------------------------


async def test_open_request_is_shown_without_its_prompt_and_can_be_cancelled() -> None:
    engine = FakeEngine()
    async with running_server(engine) as server, httpx.AsyncClient(base_url=server.url) as client:
        await server.listener.is_ready.wait()
        engine.step_s = 0.01
        body = {"prompt": "a secret", "max_tokens": 400, "stream": True, "priority": 4}
        asking = asyncio.create_task(
            client.post("/v1/completions", json=body, headers={"X-Request-Id": "mine"}, timeout=60)
        )
        await until(lambda: engine.events_made > 3)
        page = await client.get("/v1/requests")
        (shown,) = page.json()["open"]
        assert (shown["id"], shown["state"], shown["stream"]) == ("mine", "decode", True)
        assert (shown["queue_s"], shown["prefill_s"], shown["priority"]) == (0.5, 0.25, 4)
        assert shown["prompt_tokens"] == 8
        assert 0 < shown["completion_tokens"] < 400
        assert "secret" not in page.text
        cancelled = await client.post("/v1/requests/cmpl-mine/cancel")
        assert cancelled.json()["num_cancelled"] == 1
        response = await asking
        chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
        assert chunks[-1]["choices"][0]["finish_reason"] == "abort"
        assert response.text.endswith("data: [DONE]\n\n")
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        assert text
        assert expected_text("a secret", 0, 400).startswith(text)
        (ended,) = (await client.get("/v1/requests")).json()["ended"]
        assert (ended["outcome"], ended["finish_reasons"]) == (Outcome.ABORTED, ["abort"])
        again = await client.post("/v1/requests/mine/cancel")
        assert again.status_code == 404


async def test_requests_that_share_an_id_are_cancelled_together() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    app = create_app(engine, ServerConfig())
    async with client_of(app) as client:
        asking = [
            asyncio.create_task(
                client.post("/v1/completions", json=body, headers={"X-Request-Id": "same"})
            )
            for body in (BODY | {"n": 3}, BODY | {"prompt": ["ab", "cd"]})
        ]
        await until(lambda: len(engine.open_ids) == 2)
        answer = await client.post("/v1/requests/same/cancel")
        assert answer.json()["num_cancelled"] == 2
        for response in await asyncio.gather(*asking):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "request_aborted"
    assert outcomes_of(app) == {"aborted": 2}


@pytest.mark.parametrize(
    ("path", "body", "id"),
    [
        ("/v1/completions", {"prompt": "ab"}, "cmpl-a/b?c"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}]},
            "chatcmpl-a/b?c",
        ),
        ("/v1/responses", {"input": "ab"}, "resp_a/b?c"),
        ("/v1/embeddings", {"input": "ab"}, "embd-a/b?c"),
    ],
)
async def test_the_id_of_any_answer_names_its_request(
    path: str, body: dict[str, Any], id: str
) -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with client_of(create_app(engine, ServerConfig())) as client:
        asking = asyncio.create_task(client.post(path, json=body | {"request_id": "a/b?c"}))
        await until(lambda: len(engine.open_ids) == 1)
        answer = await client.post(f"/v1/requests/{quote(id, safe='')}/cancel")
        assert answer.json() == {"id": id, "num_cancelled": 1, "object": "request.cancelled"}
        assert (await asking).status_code == 503


ADMIN_ROUTES = [("GET", "/v1/requests"), ("POST", "/v1/requests/x/cancel")]


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
@pytest.mark.parametrize(
    ("keys", "host", "headers", "status"),
    [
        ({}, "127.0.0.1", {}, 200),
        ({}, "::1", {}, 200),
        ({}, "10.0.0.7", {}, 403),
        ({}, "127.0.0.1", {"X-Forwarded-For": "10.0.0.7"}, 403),
        ({}, "127.0.0.1", {"Origin": "http://evil.example"}, 403),
        ({}, "127.0.0.1", {"Host": "evil.example:8000"}, 403),
        ({"api_keys": ("k",)}, "127.0.0.1", {}, 401),
        ({"api_keys": ("k",)}, "127.0.0.1", {"Authorization": "Bearer k"}, 200),
        ({"api_keys": ("k",)}, "10.0.0.7", {"Authorization": "Bearer k"}, 403),
        ({"api_keys": ("k",), "admin_keys": ("root",)}, "10.0.0.7", ADMIN, 200),
        (
            {"api_keys": ("k",), "admin_keys": ("root",)},
            "127.0.0.1",
            {"Authorization": "Bearer k"},
            403,
        ),
        ({"api_keys": ("k admin",)}, "10.0.0.7", {"Authorization": "Bearer k"}, 200),
    ],
)
async def test_admin_routes_on_the_main_port_are_for_administrators(
    keys: dict[str, Any],
    host: str,
    headers: dict[str, str],
    status: int,
    method: str,
    path: str,
) -> None:
    app = create_app(FakeEngine(), ServerConfig(**keys))
    async with client_of(app, host) as client:
        response = await client.request(method, path, headers=headers)
    expected = 404 if status == 200 and method == "POST" else status
    assert response.status_code == expected
    if status == 403:
        assert response.json()["error"]["code"] == "admin_key_required"


@pytest.mark.parametrize(
    ("config", "host", "headers", "status"),
    [
        ({}, "127.0.0.1", {}, 200),
        ({}, "10.0.0.7", {}, 403),
        ({}, "127.0.0.1", {"Host": "evil.example:8001"}, 403),
        ({"admin_host": "127.43.0.2"}, "127.0.0.1", {"Host": "evil.example:8001"}, 403),
        ({"admin_host": "0.0.0.0"}, "10.0.0.7", {"Host": "octavo-0.octavo:8001"}, 200),
        ({"api_keys": ("k",)}, "10.0.0.7", {"Authorization": "Bearer k"}, 403),
        ({"admin_host": "0.0.0.0"}, "10.0.0.7", {}, 200),
        ({"admin_host": "0.0.0.0", "admin_keys": ("root",)}, "10.0.0.7", {}, 401),
        ({"admin_host": "0.0.0.0", "admin_keys": ("root",)}, "10.0.0.7", ADMIN, 200),
        ({"admin_host": "0.0.0.0", "admin_key_hashes": (ROOT_HASH,)}, "10.0.0.7", {}, 401),
        ({"admin_host": "0.0.0.0", "admin_key_hashes": (ROOT_HASH,)}, "127.0.0.1", {}, 401),
        ({"admin_host": "0.0.0.0", "admin_key_hashes": (ROOT_HASH,)}, "10.0.0.7", ADMIN, 200),
        (
            {"api_keys": ("k",), "admin_key_hashes": (ROOT_HASH,)},
            "127.0.0.1",
            {"Authorization": "Bearer k"},
            403,
        ),
    ],
)
async def test_admin_port_takes_the_admin_routes_off_the_main_one(
    config: dict[str, Any], host: str, headers: dict[str, str], status: int
) -> None:
    app = create_app(FakeEngine(), ServerConfig(admin_port=0, metrics_on_admin_port=True, **config))
    admin = create_admin_app(app.state.context)
    async with client_of(admin, host) as client:
        for path in ("/v1/requests",):
            assert (await client.get(path, headers=headers)).status_code == status
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        completions = await client.post("/v1/completions", json=BODY, headers=ADMIN)
        assert completions.status_code in (401, 404)
    async with client_of(app) as client:
        key = {"Authorization": "Bearer root" if "admin_keys" in config else "Bearer k"}
        for path in ("/v1/requests", "/metrics", "/v1/load_lora_adapter"):
            refused = await client.get(path, headers=key)
            assert refused.status_code == 404
            assert "admin port (--admin-port)" in refused.json()["error"]["message"]
        refused = await client.get("/v1/nothing", headers=key)
        assert "There is no '/v1/nothing' here" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:8000", 200),
        ("octavo.localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("127.43.0.2", 200),
        ("10.0.0.7:80", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        (f"{socket.gethostname()}:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("[evil.example]", 403),
        ("", 403),
        ("2130706433", 403),
    ],
)
async def test_a_name_that_somebody_led_to_this_machine_is_not_its_own(
    host: str, status: int
) -> None:
    """A web page on a browser here may have it (DNS rebinding); its GETs tell no origin."""
    async with client_of(create_app(FakeEngine(), ServerConfig())) as client:
        response = await client.get("/v1/requests", headers={"Host": host})
        assert response.status_code == status
        if status == 403:
            assert f"The Host header is {host!r}" in response.json()["error"]["message"]
        for path in ("/health/ready", "/metrics", "/v1/models"):
            assert (await client.get(path, headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    ("client", "status"),
    [
        ("127.0.0.1", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("::ffff:10.0.0.7", 403),
        ("10.0.0.7", 403),
    ],
)
async def test_this_machine_is_known_by_either_protocol(client: str, status: int) -> None:
    """Clients that come by IPv4 to what listens on :: have such addresses."""
    async with client_of(create_app(FakeEngine(), ServerConfig()), client) as asking:
        assert (await asking.get("/v1/requests")).status_code == status


async def test_a_key_opens_admin_routes_under_any_name() -> None:
    app = create_app(FakeEngine(), ServerConfig(admin_keys=("root",)))
    async with client_of(app) as client:
        headers = ADMIN | {"Host": "octavo.example"}
        assert (await client.get("/v1/requests", headers=headers)).status_code == 200


async def test_key_of_the_admin_port_opens_nothing_else_and_locks_nothing_else() -> None:
    """The operator's: it must neither let the operator ask, nor keep those without a key out."""
    for api_keys, known in (((), {}), (("k",), {"Authorization": "Bearer k"})):
        config = ServerConfig(admin_port=0, admin_key_hashes=(ROOT_HASH,), api_keys=api_keys)
        async with client_of(create_app(FakeEngine(), config)) as client:
            answer = await client.post("/v1/completions", json=BODY, headers=known)
            assert answer.status_code == 200
            if api_keys:
                answer = await client.post("/v1/completions", json=BODY, headers=ADMIN)
                assert answer.status_code == 401

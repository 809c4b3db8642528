"""What the bodies of all open requests may take together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from octavo.config import ServerConfig
from octavo.server import open_bodies
from octavo.server.app import create_app
from octavo.server.limits import FREE_BODY_BYTES
from octavo.server.open_bodies import OpenBodies

TEXT = "/v1/completions"
HEADERS = {"content-type": "application/json"}
LONGEST = 4 * FREE_BODY_BYTES
SHORT = b'{"prompt": "a", "max_tokens": 1}'


def long_body(size: int = 3 * FREE_BODY_BYTES) -> bytes:
    return SHORT.rjust(size)


@pytest.fixture
def app(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """There is room for the longest body and as many free bytes."""
    monkeypatch.setattr(open_bodies, "NUM_LONGEST_BODIES", 1)
    return create_app(engine, ServerConfig(max_body_bytes=LONGEST))


@pytest.fixture
def bodies(app: Any) -> OpenBodies:
    found: OpenBodies = app.state.context.bodies
    return found


@pytest.fixture
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://octavo", headers=HEADERS
    ) as client:
        yield client


async def until_held(bodies: OpenBodies, size: int) -> None:
    async with asyncio.timeout(20):
        while bodies.held_bytes != size:
            await asyncio.sleep(0.001)


async def test_a_body_counts_until_its_request_is_answered(
    client: httpx.AsyncClient, engine: FakeEngine, bodies: OpenBodies
) -> None:
    engine.gate.clear()
    first = asyncio.create_task(client.post(TEXT, content=long_body()))
    await until_held(bodies, 2 * FREE_BODY_BYTES)
    second = asyncio.create_task(client.post(TEXT, content=long_body()))
    await until_held(bodies, 4 * FREE_BODY_BYTES)
    refused = await client.post(TEXT, content=long_body(FREE_BODY_BYTES + 1))
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "bodies_full"
    assert str(LONGEST) in refused.json()["error"]["message"]
    engine.gate.set()
    assert [(await each).status_code for each in (first, second)] == [200, 200]
    assert bodies.held_bytes == 0
    assert (await client.post(TEXT, content=long_body())).status_code == 200


async def test_short_bodies_find_room_when_long_ones_do_not(
    client: httpx.AsyncClient, bodies: OpenBodies
) -> None:
    bodies.held_bytes = bodies.most_bytes
    for size in (len(SHORT), FREE_BODY_BYTES):
        assert (await client.post(TEXT, content=long_body(size))).status_code == 200
    assert (await client.post("/tokenize", content=long_body())).status_code == 429


async def test_bodies_that_come_in_part_hold_what_has_come_and_nobody_up(
    client: httpx.AsyncClient, bodies: OpenBodies
) -> None:
    """Two that are half there fill all room: one is refused, and the other goes on."""
    going_on = asyncio.Event()

    async def in_halves() -> AsyncIterator[bytes]:
        yield b" " * 3 * FREE_BODY_BYTES
        await going_on.wait()
        yield long_body(FREE_BODY_BYTES)

    halves = [asyncio.create_task(client.post(TEXT, content=in_halves())) for _ in range(2)]
    await until_held(bodies, 4 * FREE_BODY_BYTES)
    going_on.set()
    assert sorted([(await half).status_code for half in halves]) == [200, 429]
    assert bodies.held_bytes == 0


async def test_a_client_that_leaves_lets_go_of_its_body(
    client: httpx.AsyncClient, bodies: OpenBodies
) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b" " * 2 * FREE_BODY_BYTES
        await asyncio.Event().wait()

    asking = asyncio.create_task(client.post(TEXT, content=half()))
    await until_held(bodies, FREE_BODY_BYTES)
    asking.cancel()
    await until_held(bodies, 0)


async def test_a_refused_body_is_read_to_its_end_and_not_kept(
    client: httpx.AsyncClient, bodies: OpenBodies
) -> None:
    """A client that is still sending would find its connection reset instead of an answer."""
    bodies.held_bytes = bodies.most_bytes
    num_sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal num_sent
        for _ in range(4):
            num_sent += 1
            yield b" " * FREE_BODY_BYTES

    assert (await client.post(TEXT, content=pieces())).status_code == 429
    assert num_sent == 4
    assert bodies.held_bytes == bodies.most_bytes

"""Ten thousand clients that leave, at every moment there is, leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from served_model import served_model
from tiny_models import make_tiny_model
from watched_server import Watched

NUM_REQUESTS = 10_000
NUM_FIRST = 1_000
"""After so many everything that is made once has been made."""
BATCH = 100
_SETTLE_LIMIT_S = 120.0

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    model = make_tiny_model("llama", tmp_path / "model")
    door = str(tmp_path / "door")
    command = (sys.executable, "-m", "watched_serve", door)
    flags = ("--max-num-seqs", "24", "--max-model-len", "256")
    with served_model(model, tmp_path / "log", *flags, command=command) as served:
        yield Watched(served, door)


def _request(draw: random.Random) -> bytes:
    body: dict[str, Any] = {
        "prompt": draw.choice(["hello", "a longer prompt of several words " * 4, ["two", "of us"]]),
        "max_tokens": draw.choice([1, 20, 100]),
        "n": draw.choice([1, 1, 1, 3]),
        "stream": draw.random() < 0.6,
        "ignore_eos": True,
    }
    if draw.random() < 0.3:
        body["stop"] = ["\x10", "no such text"]
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += "Connection: close\r\n"  # so that listening ends with the answer
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def _leave(address: tuple[str, int], draw: random.Random) -> None:
    """One client: connects, says some or all of a request, maybe listens, and goes."""
    loop = asyncio.get_running_loop()
    request = _request(draw)
    moment = draw.choice(["before-headers", "in-body", "at-once", "queued", "queued", "streaming"])
    with socket.socket() as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, address)
        said = {"before-headers": draw.randrange(60), "in-body": len(request) - 5}
        await loop.sock_sendall(connection, request[: said.get(moment, len(request))])
        if moment == "queued":
            await asyncio.sleep(draw.random() * 0.05)
        elif moment == "streaming":
            for _ in range(draw.randrange(1, 5)):
                await loop.sock_recv(connection, draw.choice([1, 200, 4000]))
        if draw.random() < 0.5:  # reset instead of a polite end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _leave_many(address: tuple[str, int], count: int, draw: random.Random) -> None:
    for _ in range(count // BATCH):
        async with asyncio.TaskGroup() as group:
            for _ in range(BATCH):
                group.create_task(_leave(address, draw))


def _settle(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + _SETTLE_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, what()
        time.sleep(0.05)


def test_ten_thousand_aborted_requests_leak_nothing(watched: Watched) -> None:
    draw = random.Random(0)

    def generate() -> str:
        body = {"prompt": "hello", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(f"{watched.served.url}/v1/completions", json=body, timeout=60)
        text: str = answer.json()["choices"][0]["text"]
        return text

    expected = generate()
    asyncio.run(_leave_many(watched.address, NUM_FIRST, draw))
    _settle(lambda: watched.gauges() == (0, 0, 0), watched.gauges)
    time.sleep(1)  # connections that were reset are noticed by now
    before = watched.holdings()
    asyncio.run(_leave_many(watched.address, NUM_REQUESTS - NUM_FIRST, draw))
    _settle(lambda: watched.gauges() == (0, 0, 0), watched.gauges)

    def is_back() -> bool:
        after = watched.holdings()
        return (
            after.tasks <= before.tasks
            and after.server_files <= before.server_files
            and after.engine_files <= before.engine_files
            and after.engine_threads <= before.engine_threads
        )

    _settle(is_back, lambda: (before, watched.holdings()))
    after = watched.holdings()
    # The pool of threads that tokenise grows to its bound and stays.
    assert after.server_threads <= before.server_threads + 32
    # A leak of one object a request would be 9,000 of them, one of 2 KiB a request 18 MiB.
    assert after.objects - before.objects < 2_000
    assert after.server_bytes - before.server_bytes < 16 << 20
    assert after.engine_bytes - before.engine_bytes < 16 << 20
    ended = watched.served.metric("octavo_requests_total", outcome="aborted")
    assert ended > NUM_REQUESTS / 4  # most got so far as to be generated for
    assert generate() == expected
    assert watched.served.stop() == 0
    assert not [event for event in watched.served.events() if event["level"] == "error"]

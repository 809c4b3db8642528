"""A pod that answers, but not as a worker does: an error of ours, and never a bug or a status that
no API server takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from octavo_operator.errors import AdapterCallError, WorkerUnreachableError
from octavo_operator.reconcile.adapter_facts import AttemptKey
from octavo_operator.reconcile.adapter_standing import Load
from octavo_operator.reconcile.worker_pod import pod_of_template
from octavo_operator.worker_adapters import complete_adapters, list_adapters, load_adapter
from octavo_operator.worker_client import WorkerClient, WorkerEndpoint

POD = pod_of_template({"spec": {"containers": [{"name": "worker"}]}})
LOAD = Load(AttemptKey("uid", "c1", "sql", "x"), POD, "hf://org/sql", None, None, False, 0)


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[WorkerEndpoint]:
    """A port where everybody gets `answer`; None: an end without a word."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is not None:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield WorkerEndpoint("127.0.0.1", server.sockets[0].getsockname()[1])


def ok(body: object) -> bytes:
    text = body if isinstance(body, str) else json.dumps(body)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + text.encode()


NO_HTTP = {
    "nothing": None,
    "line": b"\r\n\r\n",
    "no-code": b"HTTP/1.1 \r\n\r\n{}",
    "wordy-code": b"HTTP/1.1 two hundred\r\n\r\n{}",
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "tls": b"\x15\x03\x01\x00\x02\x02\x46",
    "endless-line": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n{}",
    "html": ok("<html>It works!</html>"),
    "no-utf-8": b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe{}",
    "deep": ok("[" * 200_000),
    "list": ok([]),
    "number": ok("7"),
}
LISTS = {
    "no-list": {"data": {"sql": {}}},
    "words": {"data": ["sql"]},
    "nulls": {"data": [None]},
    "nameless": {"data": [{"state": "ready"}]},
    "stateless": {"data": [{"name": "sql"}]},
    "digest": {"data": [{"name": "sql", "state": "ready", "digest": 7}]},
    "path": {"data": [{"name": "sql", "state": "ready", "path": ["x"]}]},
}
LOADS = {
    "none": {},
    "words": {"open_requests": "many", "idle_s": 1},
    "infinite": {"open_requests": 0, "idle_s": float("inf")},
    "infinitely-many": {"open_requests": float("inf"), "idle_s": 0},
    "nan": {"open_requests": 0, "idle_s": float("nan")},
    "negative": {"open_requests": -1, "idle_s": 0},
}
PHASES = {
    "list": {"phases_s": [1, 2]},
    "word": {"phases_s": "weights"},
    "words": {"phases_s": {"weights": "long"}},
    "nulls": {"phases_s": {"weights": None}},
    "nan": {"phases_s": {"weights": float("nan")}},
}


@pytest.mark.parametrize("answer", NO_HTTP.values(), ids=NO_HTTP)
async def test_what_is_no_answer_is_no_worker(answer: bytes | None) -> None:
    workers = WorkerClient(timeout_s=30.0)
    async with answering(answer) as worker:
        with pytest.raises(WorkerUnreachableError):
            await list_adapters(workers, worker)
        with pytest.raises(WorkerUnreachableError):
            await complete_adapters(workers, worker)
        with pytest.raises(WorkerUnreachableError):
            await workers.load(worker)
        with pytest.raises(WorkerUnreachableError):
            await workers.startup_phases_s(worker)
        with pytest.raises(AdapterCallError) as caught:
            await load_adapter(workers, worker, LOAD, 30.0)
    assert caught.value.reason == "PodUnreachable"


@pytest.mark.parametrize("answer", LISTS.values(), ids=LISTS)
async def test_list_of_what_are_no_adapters_is_none(answer: object) -> None:
    async with answering(ok(answer)) as worker:
        with pytest.raises(WorkerUnreachableError, match="/v1/adapters"):
            await list_adapters(WorkerClient(), worker)


@pytest.mark.parametrize("answer", LOADS.values(), ids=LOADS)
async def test_load_that_is_no_amount_is_not_told(answer: object) -> None:
    async with answering(ok(answer)) as worker:
        with pytest.raises(WorkerUnreachableError, match="does not tell its load"):
            await WorkerClient().load(worker)


@pytest.mark.parametrize("answer", PHASES.values(), ids=PHASES)
async def test_phases_that_are_no_seconds_are_not_told(answer: object) -> None:
    async with answering(ok(answer)) as worker:
        with pytest.raises(WorkerUnreachableError, match="tells no phases"):
            await WorkerClient().startup_phases_s(worker)


async def test_digest_that_is_none_is_no_success() -> None:
    async with answering(ok({"digest": {"sha256": "0"}})) as worker:
        with pytest.raises(AdapterCallError, match="says it has loaded"):
            await load_adapter(WorkerClient(), worker, LOAD, 30.0)


async def test_word_of_a_worker_is_cut_to_what_a_status_holds() -> None:
    """A condition's message holds 32768 characters; more, and no status is written any more."""
    body = json.dumps({"error": {"code": "adapter_refused", "message": "x" * 100_000}}).encode()
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n" + body) as worker:
        with pytest.raises(AdapterCallError) as caught:
            await load_adapter(WorkerClient(), worker, LOAD, 30.0)
    assert (caught.value.reason, len(str(caught.value))) == ("AdapterRefused", 1000)
    entry = {"name": "sql", "state": "failed", "message": "x" * 100_000}
    async with answering(ok({"data": [entry]})) as worker:
        listed, _ = await list_adapters(WorkerClient(), worker)
    assert len(listed["sql"].message) == 1000


async def test_list_of_ten_thousand_adapters_is_read_whole() -> None:
    entry = {"state": "ready", "path": "hf://org/" + "x" * 400, "digest": "0" * 64}
    entries = [{"name": f"adapter-{number}", **entry} for number in range(10_000)]
    async with answering(ok({"data": entries})) as worker:
        listed, _ = await list_adapters(WorkerClient(), worker)
    assert len(listed) == 10_000


async def test_answer_that_is_too_long_is_told_as_one() -> None:
    workers = WorkerClient(timeout_s=30.0)
    async with answering(ok('{"data": [' + " " * (17 << 20))) as worker:
        with pytest.raises(WorkerUnreachableError, match=r"/v1/adapters .* more than 16 MiB"):
            await list_adapters(workers, worker)
        with pytest.raises(WorkerUnreachableError, match=r"/health/load .* more than 1 MiB"):
            await workers.load(worker)

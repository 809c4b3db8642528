"""What becomes of the API's failures, and of work that fails."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from eventually import eventually
from octavo_operator.cluster.failures import network_error, response_error
from octavo_operator.cluster.work_queue import WorkQueue
from octavo_operator.errors import (
    ClusterError,
    ConflictError,
    ForbiddenError,
    GoneError,
    NotFoundError,
    RejectedError,
    ThrottledError,
    UnavailableError,
)

KEY = ("models", "chat")


@pytest.mark.parametrize(
    ("status", "headers", "error", "retry_after_s"),
    [
        (404, {}, NotFoundError, None),
        (409, {}, ConflictError, 1.0),
        (410, {}, GoneError, None),
        (429, {"Retry-After": "7"}, ThrottledError, 7.0),
        (429, {"Retry-After": "Mon, 01 Jan 2026"}, ThrottledError, 5.0),
        (429, {"Retry-After": "999999"}, ThrottledError, 300.0),
        (401, {}, UnavailableError, 10.0),
        (403, {}, ForbiddenError, 60.0),
        (400, {}, RejectedError, None),
        (422, {}, RejectedError, None),
        (500, {}, UnavailableError, 10.0),
        (503, {"Retry-After": "3"}, UnavailableError, 3.0),
    ],
)
def test_response(
    status: int, headers: dict[str, str], error: type[ClusterError], retry_after_s: float | None
) -> None:
    body = b'{"kind": "Status", "message": "the reason"}'
    found = response_error("GET /x", status, headers, body)
    assert type(found) is error
    assert found.retry_after_s == retry_after_s
    assert str(found) == f"GET /x: HTTP {status}: the reason"


@pytest.mark.parametrize(
    "message",
    [
        "failed to create typed patch object (models/chat; apps/v1, Kind=Deployment): "
        ".spec.template.spec.nodeSelectr: field not declared in schema",
        "failed to convert new object (models/chat; apps/v1, Kind=Deployment) to proper version: "
        "unable to convert unstructured object to apps/v1, Kind=Deployment: quantities must match "
        "the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
    ],
    ids=["no-such-field", "no-quantity"],
)
def test_manifest_that_fits_no_schema_is_rejected_whatever_the_code(message: str) -> None:
    """What Kubernetes 1.36 answers to server-side apply."""
    body = json.dumps({"kind": "Status", "message": message, "code": 500}).encode()
    found = response_error("PATCH /x", 500, {}, body)
    assert type(found) is RejectedError
    assert message in str(found)


def test_answer_that_is_no_status_is_quoted() -> None:
    assert "<html> gateway" in str(response_error("GET /x", 502, {}, b"<html>\n gateway"))
    assert "no explanation" in str(response_error("GET /x", 502, {}, b""))


def test_timeout_is_named() -> None:
    assert str(network_error("GET /x", TimeoutError())) == "GET /x: timed out"


async def test_work_on_one_key_never_overlaps_and_is_not_lost() -> None:
    running, most, turns = 0, 0, 0

    async def work(key: tuple[str, str]) -> None:
        nonlocal running, most, turns
        running += 1
        most = max(most, running)
        turns += 1
        if turns == 1:
            queue.add(key)
            queue.add(key)
        await asyncio.sleep(0.01)
        running -= 1

    queue = WorkQueue(work)
    task = asyncio.create_task(queue.run())
    queue.add(KEY)
    queue.add(KEY)
    await eventually(lambda: turns >= 2 and queue.is_idle)
    assert (most, turns) == (1, 2)
    task.cancel()


async def test_failed_work_comes_back_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("octavo_operator.cluster.work_queue.FIRST_RETRY_S", 0.01)
    done: list[tuple[str, str]] = []
    failures = [RuntimeError("a bug"), UnavailableError("down", retry_after_s=0.02)]

    async def work(key: tuple[str, str]) -> None:
        if key == KEY and failures:
            raise failures.pop()
        done.append(key)

    told: list[str] = []
    queue = WorkQueue(
        work, workers=1, on_done=lambda seconds, error: told.append(type(error).__name__)
    )
    task = asyncio.create_task(queue.run())
    queue.add(KEY)
    queue.add(("models", "other"))
    await eventually(lambda: len(done) >= 1)
    assert queue.num_failing == 1
    await eventually(lambda: len(done) >= 2 and queue.is_idle)
    assert done == [("models", "other"), KEY]
    assert "down; trying again" in caplog.text
    assert told == ["UnavailableError", "NoneType", "RuntimeError", "NoneType"]
    assert queue.num_failing == 0
    task.cancel()


async def test_queue_tells_how_long_the_first_in_it_has_waited() -> None:
    async def work(key: tuple[str, str]) -> None:
        await asyncio.Event().wait()

    queue = WorkQueue(work, workers=1)
    now = time.monotonic()
    assert (queue.num_waiting, queue.longest_wait_s(now + 60.0)) == (0, 0.0)
    queue.add(KEY)
    queue.add(("models", "other"))
    assert queue.num_waiting == 2
    assert queue.longest_wait_s(now + 60.0) > 50.0
    task = asyncio.create_task(queue.run())
    await eventually(lambda: queue.num_waiting == 1)
    assert queue.longest_work_s(time.monotonic() + 60.0) >= 60.0
    task.cancel()

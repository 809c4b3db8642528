"""The only code that talks to a worker: what it says of itself, over HTTP.

Knows the routes of the contract (`/health/startup`, `/health/load`) and how to fail; knows no
Kubernetes. Written on plain streams, so that local mode needs no HTTP library.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from octavo_operator.errors import WorkerUnreachableError
from octavo_operator.json_text import read_json

TIMEOUT_S: Final = 2.0
ANSWER_LIMIT: Final = 1024 * 1024
"""Bytes of an answer, where the caller expects no list: they have some hundred."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Generation requests open now, and the seconds for which there have been none."""

    open_requests: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class WorkerEndpoint:
    """Where a worker answers the operator; `key` opens what is for administrators only, None where
    nothing can be had but what is open to all."""

    host: str
    port: int
    key: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class WorkerClient:
    """Asks one worker at a time; every method raises WorkerUnreachableError within `timeout_s`."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    async def startup_phases_s(self, worker: WorkerEndpoint) -> Mapping[str, float]:
        """Seconds of each phase of loading that has ended, by the worker's own names."""
        answer = await self._get(worker, "/health/startup")
        try:
            return {name: _amount(told) for name, told in dict(answer["phases_s"]).items()}
        except (KeyError, TypeError, ValueError) as error:
            raise WorkerUnreachableError(f"{worker} tells no phases of its start") from error

    async def load(self, worker: WorkerEndpoint) -> LoadReport:
        """Whether anybody is being served."""
        answer = await self._get(worker, "/health/load")
        try:
            return LoadReport(int(_amount(answer["open_requests"])), _amount(answer["idle_s"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WorkerUnreachableError(f"{worker} does not tell its load") from error

    async def _get(self, worker: WorkerEndpoint, path: str) -> dict[str, Any]:
        status, answer = await self.ask(worker, "GET", path, is_open=True)
        if status != 200:
            raise WorkerUnreachableError(f"GET {path} of {worker}: HTTP {status}")
        return answer

    async def ask(
        self,
        worker: WorkerEndpoint,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        is_open: bool = False,
        timeout_s: float | None = None,
        answer_limit: int = ANSWER_LIMIT,
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of one call; an open route is not shown the key."""
        key = None if is_open else worker.key
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                status, data = await call(
                    worker.host, worker.port, method, path, body, key, answer_limit
                )
            answer = read_json(data)
        except (OSError, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise WorkerUnreachableError(f"{method} {path} of {worker}: {reason}") from error
        if not isinstance(answer, dict):
            raise WorkerUnreachableError(f"{method} {path} of {worker}: HTTP {status}, no object")
        return status, answer


async def call(
    host: str,
    port: int,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    key: str | None = None,
    answer_limit: int = ANSWER_LIMIT,
) -> tuple[int, bytes]:
    """Status and body of one request; raises OSError, or ValueError for what is no HTTP or has a
    body of more than `answer_limit` bytes."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.0", f"Host: {host}", "Connection: close"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        await writer.drain()
        status_line = await reader.readline()
        if not status_line.startswith(b"HTTP/1."):
            raise ValueError(f"this is no HTTP: {status_line[:80]!r}")
        status = int(status_line.partition(b" ")[2][:3])
        while (await reader.readline()).strip():
            pass
        return status, await _body(reader, answer_limit)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _amount(told: object) -> float:
    """A number that something may be counted or timed by; raises ValueError. JSON as Python reads
    it has infinities, and numbers that are none."""
    if not isinstance(told, int | float) or not 0 <= told < math.inf:
        raise ValueError(f"{told!r} is no amount")
    return float(told)


async def _body(reader: asyncio.StreamReader, limit: int) -> bytes:
    """Up to the end, over many reads: a single one may end with a packet."""
    body = bytearray()
    while part := await reader.read(65_536):
        body += part
        if len(body) > limit:
            raise ValueError(f"the answer has more than {limit >> 20} MiB, all that is read of one")
    return bytes(body)

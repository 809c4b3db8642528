"""The only code that talks to a worker: what it says of itself, over HTTP.

Knows the routes of the contract (`/health/startup`, `/health/load`) and how to fail; knows no
Kubernetes. Written on plain streams, so that local mode needs no HTTP library.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.errors import WorkerUnreachableError

TIMEOUT_S: Final = 2.0
_ANSWER_LIMIT: Final = 65_536


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Generation requests open now, and the seconds for which there have been none."""

    open_requests: int
    idle_s: float


class WorkerClient:
    """Asks one worker at a time; every method raises WorkerUnreachableError within `timeout_s`."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    async def startup_phases_s(self, host: str, port: int) -> Mapping[str, float]:
        """Seconds of each phase of loading that has ended, by the worker's own names."""
        answer = await self._get(host, port, "/health/startup")
        phases = answer.get("phases_s")
        if not isinstance(phases, Mapping):
            raise WorkerUnreachableError(f"{host}:{port} tells no phases of its start")
        return {str(name): float(seconds) for name, seconds in phases.items()}

    async def load(self, host: str, port: int) -> LoadReport:
        """Whether anybody is being served."""
        answer = await self._get(host, port, "/health/load")
        try:
            return LoadReport(int(answer["open_requests"]), float(answer["idle_s"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WorkerUnreachableError(f"{host}:{port} does not tell its load") from error

    async def _get(self, host: str, port: int, path: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._timeout_s):
                status, body = await get(host, port, path)
            answer = json.loads(body)
        except (OSError, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise WorkerUnreachableError(f"GET {path} of {host}:{port}: {reason}") from error
        if status != 200 or not isinstance(answer, dict):
            raise WorkerUnreachableError(f"GET {path} of {host}:{port}: HTTP {status}")
        return answer


async def get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """Status and body (64 KiB of it) of one GET; raises OSError or ValueError."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        await writer.drain()
        status_line = await reader.readline()
        status = int(status_line.split()[1]) if b" " in status_line else 0
        while (await reader.readline()).strip():
            pass
        return status, await reader.read(_ANSWER_LIMIT)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

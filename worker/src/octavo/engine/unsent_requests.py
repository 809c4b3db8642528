"""Requests that are still being written, before the engine hears of them: a prompt is encoded, a
grammar tried.

Knows ids and how long each may take; knows nothing of what is written. Torch-free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from octavo.request import FinishReason

_Written = TypeVar("_Written")


class UnsentRequests:
    """Used in one event loop."""

    def __init__(self) -> None:
        self._waits: dict[asyncio.Timeout, str] = {}
        """Each with its request's id."""
        self._aborted: set[asyncio.Timeout] = set()
        self._emptied = asyncio.Event()
        self._emptied.set()

    @property
    def ids(self) -> list[str]:
        """Of all that are being written."""
        return list(self._waits.values())

    async def write(
        self, request_id: str, work: Awaitable[_Written], timeout_s: float | None
    ) -> _Written | FinishReason:
        """What comes of ``work``; or, where it did not end in time or :meth:`abort` came before,
        why there will be nothing. ``timeout_s``: from now; None: as long as it takes."""
        wait = asyncio.timeout(timeout_s)
        self._waits[wait] = request_id
        self._emptied.clear()
        try:
            async with wait:
                return await work
        except TimeoutError:
            if not wait.expired():
                raise
            return FinishReason.ABORT if wait in self._aborted else FinishReason.DEADLINE
        finally:
            del self._waits[wait]
            self._aborted.discard(wait)
            if not self._waits:
                self._emptied.set()

    def abort(self, request_id: str) -> bool:
        """End the writing of a request; False if it is not being written (any more)."""
        for wait, id in self._waits.items():
            if id == request_id and wait not in self._aborted and not wait.expired():
                self._aborted.add(wait)
                wait.reschedule(0.0)
                return True
        return False

    async def wait_for_none(self) -> None:
        """Until none is being written; who has written one has gone on by then."""
        await self._emptied.wait()

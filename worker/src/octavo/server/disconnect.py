"""Notices that a client has gone, while its answer is being made.

Knows ASGI's ``receive`` only. Like :func:`asyncio.timeout`: it cancels the task that entered it,
and turns that cancellation into an error of its own.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive


class ClientGoneError(Exception):
    """The client closed the connection before its answer was complete."""


class DisconnectWatch:
    """Cancels the body of ``async with`` when the client goes; raises ClientGoneError then.

    To be entered after the request's body has been read.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_gone = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancellations = task.cancelling()
        self._watcher = asyncio.create_task(self._watch(), name="disconnect-watch")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watcher.cancel()
        if not self._is_gone:
            return
        is_ours = self._task.uncancel() <= self._cancellations
        if is_ours and (kind is None or issubclass(kind, asyncio.CancelledError)):
            raise ClientGoneError from error

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._task.cancel()

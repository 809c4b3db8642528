"""Adapters that the engine's process has been asked to read, and who waits for its word.

Knows messages and numbers; names are :mod:`.adapter_table`'s. Lets what lies in a folder never wait
for what must be fetched from somewhere. Torch-free.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable

from octavo.engine.carried_errors import from_adapter_failure
from octavo.engine.messages import AdapterFailed, AdapterOpened, CloseAdapter, OpenAdapter
from octavo.errors import EngineDeadError
from octavo.lora.adapter_source import AdapterSource

_MAX_FETCHES = 3
"""Of the four that the engine's threads can read at a time."""


class AdapterOpenings:
    """Lives in one event loop. ``send`` takes messages to the engine."""

    def __init__(self, send: Callable[[OpenAdapter | CloseAdapter], None]) -> None:
        self._send = send
        self._ids = itertools.count(1)
        self._fetches = asyncio.Semaphore(_MAX_FETCHES)
        self._waiting: dict[int, asyncio.Future[AdapterOpened]] = {}
        self._death: EngineDeadError | None = None

    async def open(
        self, source: AdapterSource, known_digest: str | None, is_wanted: Callable[[], bool]
    ) -> AdapterOpened | None:
        """Have an adapter read; None if nobody wants it any more when its turn comes.

        Raises what the engine could not read it for, or EngineDeadError.
        """
        async with contextlib.nullcontext() if source.is_near else self._fetches:
            if self._death is not None:
                raise self._death
            if not is_wanted():
                return None
            id_ = next(self._ids)
            self._waiting[id_] = answer = asyncio.get_running_loop().create_future()
            try:
                self._send(OpenAdapter(id_, source, known_digest))
                opened: AdapterOpened = await answer
            finally:
                self._waiting.pop(id_, None)
            return opened

    def heard(self, message: AdapterOpened | AdapterFailed) -> bool:
        """The engine's word; returns whether it was waited for."""
        answer = self._waiting.pop(message.adapter_id, None)
        if answer is None:
            return False
        if answer.done():
            return True
        if isinstance(message, AdapterOpened):
            answer.set_result(message)
        else:
            answer.set_exception(from_adapter_failure(message))
        return True

    def engine_died(self, error: EngineDeadError) -> None:
        """Nobody will be heard any more."""
        self._death = error
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)
        self._waiting.clear()

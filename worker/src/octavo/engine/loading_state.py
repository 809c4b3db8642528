"""How far an engine's loading is, and how it ended: once, well or not."""

from __future__ import annotations

import asyncio

from octavo.engine.interface import LoadProgress
from octavo.engine.messages import PhaseFinished, PhaseStarted
from octavo.engine.process_age import seconds_since_process_start
from octavo.errors import OctavoError


class LoadingState:
    """Ended by :meth:`succeed` or the first :meth:`fail`."""

    def __init__(self) -> None:
        self._phase = PhaseStarted("")
        self._finished: dict[str, float] = {}
        self._ready_s: float | None = None
        self._ended = asyncio.Event()
        self._error: OctavoError | None = None

    def progress(self) -> LoadProgress:
        phase = self._phase
        return LoadProgress(
            phase.name, phase.detail, phase.fraction, dict(self._finished), self._ready_s
        )

    def hear(self, message: PhaseStarted | PhaseFinished) -> None:
        if isinstance(message, PhaseFinished):
            self._finished[message.name] = message.seconds
            message = PhaseStarted("")
        self._phase = message

    def succeed(self) -> None:
        self._ready_s = seconds_since_process_start()
        self._ended.set()

    def fail(self, error: OctavoError) -> bool:
        """End it with an error; False if it had ended before."""
        if self._ended.is_set():
            return False
        self._error = error
        self._ended.set()
        return True

    async def wait(self) -> None:
        """Until it has ended; raises what stopped it."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error

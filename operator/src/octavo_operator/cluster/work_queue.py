"""A queue of resources that want a look: each waits once, is worked on by one worker at a time.

A resource that is added while it is worked on gets another turn after; one whose work fails comes
back after a pause that grows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.errors import OctavoOperatorError

logger = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 300.0


class WorkQueue:
    """Calls `work` for every key added, with at most `workers` at the same time.

    `on_done` is told the seconds each call took, and its error.
    """

    def __init__(
        self,
        work: Callable[[ServiceKey], Awaitable[None]],
        workers: int = 4,
        on_done: Callable[[float, Exception | None], None] = lambda seconds, error: None,
    ) -> None:
        self._work = work
        self._workers = workers
        self._on_done = on_done
        self._ready: asyncio.Queue[ServiceKey] = asyncio.Queue()
        self._waiting: dict[ServiceKey, float] = {}
        self._active: dict[ServiceKey, float] = {}
        self._again: set[ServiceKey] = set()
        self._failures: dict[ServiceKey, int] = {}
        self._timers: dict[ServiceKey, asyncio.TimerHandle] = {}

    def add(self, key: ServiceKey) -> None:
        """Have `key` looked at soon; adding it twice is the same as once."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._active:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting[key] = time.monotonic()
            self._ready.put_nowait(key)

    def add_later(self, key: ServiceKey, delay_s: float) -> None:
        """Have `key` looked at after a while, at the latest: what comes up before counts."""
        if key in self._waiting:
            return
        loop, known = asyncio.get_running_loop(), self._timers.get(key)
        if known is not None:
            if known.when() <= loop.time() + delay_s:
                return
            known.cancel()
        self._timers[key] = loop.call_later(delay_s, self.add, key)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is due now; retries that wait for their time do not count."""
        return not (self._waiting or self._active or self._again)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_failing(self) -> int:
        """Keys whose latest work failed."""
        return len(self._failures)

    def longest_wait_s(self, now: float) -> float:
        """How long the key that waits longest has waited at `now`, a monotonic time."""
        return max(0.0, now - min(list(self._waiting.values()), default=now))

    def longest_work_s(self, now: float) -> float:
        """How long the oldest work has been under way at `now`, a monotonic time; 0 if none is."""
        return now - min(list(self._active.values()), default=now)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._workers):
                    tasks.create_task(self._serve(), name=f"reconcile worker {number}")
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    async def _serve(self) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.pop(key, None)
            self._active[key] = started_s = time.monotonic()
            failure: Exception | None = None
            try:
                await self._work(key)
                self._failures.pop(key, None)
            except OctavoOperatorError as error:
                failure = error
                self._retry(key, error)
            except Exception as error:  # a bug in one resource's work must not stop the others
                failure = error
                logger.exception("reconciling %s/%s failed", *key)
                self._retry(key, error)
            finally:
                self._on_done(time.monotonic() - started_s, failure)
                self._active.pop(key, None)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    def _retry(self, key: ServiceKey, error: Exception) -> None:
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        asked_s = getattr(error, "retry_after_s", None) or 0.0
        delay_s = max(asked_s, min(FIRST_RETRY_S * 2 ** min(count, 10), LONGEST_RETRY_S))
        logger.warning("%s/%s: %s; trying again in %.0f s", *key, error, delay_s)
        self.add_later(key, delay_s)

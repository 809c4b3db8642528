"""Readiness of a new server waits, for a moment, for the word that no adapter is missing.

What it was started with (``--lora-wanted``) may be older than what the other servers have by now.
Whoever looks after it compares, and says when all is there. Nobody need be there, though: it waits
for as long as somebody asks, and no longer. Torch-free.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

PATIENCE_S: Final = 20.0
"""Without a question about its adapters it waits no longer: longer than two operators take to
follow each other."""

LIMIT_S: Final = 300.0
"""It waits no longer at all, say for a source that is down."""


class AdapterHold:
    """Off until `begin`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since_s = self._heard_s = 0.0
        self._is_over = asyncio.Event()
        self._is_over.set()

    @property
    def is_on(self) -> bool:
        """Whether to take no traffic yet."""
        now_s = self._clock()
        if now_s - self._heard_s >= PATIENCE_S or now_s - self._since_s >= LIMIT_S:
            self._is_over.set()
        return not self._is_over.is_set()

    def begin(self) -> None:
        """From now on, until `end` or until the time is up."""
        self._since_s = self._heard_s = self._clock()
        self._is_over.clear()

    def heard(self) -> None:
        """Somebody looks after it."""
        self._heard_s = self._clock()

    def end(self) -> None:
        """Nothing is missing; for good."""
        self._is_over.set()

    async def wait(self, timeout_s: float) -> None:
        """Until it is off, though no longer than ``timeout_s``."""
        if self.is_on:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_over.wait(), timeout_s)

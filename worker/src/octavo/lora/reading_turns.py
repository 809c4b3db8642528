"""Turns at reading files into memory: one at a time, unless one does not come to its end.

Knows who reads and since when; nothing of files. What is read takes memory until it is converted,
so threads do not all read at once; but a file system that does not answer keeps a thread for as
long as it likes. So the turn is taken from it: whoever has had it for ``limit_s`` goes on beside
the next.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

LIMIT_S = 2.0
"""Enough for most files. Two that are slow and not stuck only take the memory of both."""


class ReadingTurns:
    """Thread-safe."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._changed = threading.Condition()
        self._reader: object | None = None
        """Whoever has the turn."""
        self._began_s = 0.0

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and have it until the end of the block or of the limit."""
        reader = object()
        with self._changed:
            while self._reader is not None and (left_s := self._left_s()) > 0:
                self._changed.wait(left_s)
            self._reader, self._began_s = reader, time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                if self._reader is reader:
                    self._reader = None
                    self._changed.notify_all()

    def _left_s(self) -> float:
        return self._began_s + self._limit_s - time.monotonic()

"""Turns at having files in memory: several at a time as far as they fit, and nobody for ever.

Knows who reads, how much and since when; nothing of files. What is read takes memory until it is
converted, so threads read side by side only while all of it stays below a limit; what is larger is
read alone. But a file system that does not answer keeps a thread for as long as it likes. So the
turn is taken from it: whoever has had one for ``limit_s`` goes on beside the others, uncounted.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

LIMIT_BYTES = 1 << 30
LIMIT_S = 2.0
"""Enough for most files. Those that are slow and not stuck only take the memory of more."""


@dataclass(eq=False, slots=True)
class _Turn:
    num_bytes: int
    end_s: float
    """From then on it is not counted."""


class ReadingTurns:
    """Thread-safe."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES, limit_s: float = LIMIT_S) -> None:
        self._limit_bytes = limit_bytes
        self._limit_s = limit_s
        self._changed = threading.Condition()
        self._turns: list[_Turn] = []
        """Of those that read, from the one that began first."""

    @contextlib.contextmanager
    def turn(self, num_bytes: int) -> Iterator[None]:
        """Wait for a turn, and have it until the end of the block or of the limit."""
        with self._changed:
            while (left_s := self._left_s(num_bytes)) > 0:
                self._changed.wait(left_s)
            turn = _Turn(num_bytes, time.monotonic() + self._limit_s)
            self._turns.append(turn)
        try:
            yield
        finally:
            with self._changed:
                self._turns.remove(turn)
                self._changed.notify_all()

    def _left_s(self, num_bytes: int) -> float:
        """Until so much may fit beside what is being read; 0: it does."""
        now_s = time.monotonic()
        counted = [turn for turn in self._turns if turn.end_s > now_s]
        total = sum(turn.num_bytes for turn in counted)
        if not counted or total + num_bytes <= self._limit_bytes:
            return 0.0
        return counted[0].end_s - now_s

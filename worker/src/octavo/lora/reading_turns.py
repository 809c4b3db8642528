"""Turns at reading: several at a time as far as they fit a limit, in the order they came.

Knows who reads, how much and since when; nothing of files. What is read takes memory until it is
converted, so threads read side by side only while all of it stays below a limit; what is larger is
read alone. Nobody is passed by, so a large one comes to its turn among any number of small. But a
file system that does not answer keeps a thread for as long as it likes. So the turn is taken from
it: whoever has had one for ``limit_s`` goes on beside the others, uncounted.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

LIMIT_BYTES = 1 << 30
LIMIT_S = 2.0
"""Enough for most files. Those that are slow and not stuck only take the memory of more."""


def most_bytes_counted(num_readers: int, largest_bytes: int) -> int:
    """What so many that read no more than ``largest_bytes`` each have in memory at a time."""
    return min(num_readers * largest_bytes, max(LIMIT_BYTES, largest_bytes))


@dataclass(eq=False, slots=True)
class _Turn:
    size: int
    end_s: float = math.inf
    """From then on it is not counted."""


class ReadingTurns:
    """Thread-safe. ``limit``: of all sizes together, bytes or others."""

    def __init__(self, limit: int = LIMIT_BYTES, limit_s: float = LIMIT_S) -> None:
        self._limit = limit
        self._limit_s = limit_s
        self._changed = threading.Condition()
        self._waiting: deque[_Turn] = deque()
        """The first is the next to read."""
        self._reading: list[_Turn] = []
        """From the one that began first."""

    @property
    def are_taken(self) -> bool:
        """Whether anybody who is counted has one."""
        with self._changed:
            return bool(self._counted(time.monotonic()))

    @contextlib.contextmanager
    def turn(self, size: int) -> Iterator[None]:
        """Wait for a turn, and have it until the end of the block or of the limit."""
        turn = _Turn(size)
        with self._changed:
            self._waiting.append(turn)
            while (left_s := self._left_s(turn)) > 0:
                self._changed.wait(left_s)
            self._waiting.popleft()
            turn.end_s = time.monotonic() + self._limit_s
            self._reading.append(turn)
            self._changed.notify_all()  # the next may fit beside it
        try:
            yield
        finally:
            with self._changed:
                self._reading.remove(turn)
                self._changed.notify_all()

    def _left_s(self, turn: _Turn) -> float:
        """Until it may be its turn; 0: it is."""
        if self._waiting[0] is not turn:
            return self._limit_s  # or when the one ahead begins, which is told
        now_s = time.monotonic()
        counted = self._counted(now_s)
        total = sum(one.size for one in counted)
        if not counted or total + turn.size <= self._limit:
            return 0.0
        return counted[0].end_s - now_s

    def _counted(self, now_s: float) -> list[_Turn]:
        return [turn for turn in self._reading if turn.end_s > now_s]

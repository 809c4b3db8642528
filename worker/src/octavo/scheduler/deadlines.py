"""When requests end at the latest.

Knows ids and moments; knows nothing of requests, so that who has ended can be let go of.
"""

from __future__ import annotations

import heapq
import math


class Deadlines:
    """Moments and ids, the earliest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []

    def add(self, deadline_s: float, request_id: str, serial: int) -> None:
        """``serial`` tells requests apart that use an id one after another."""
        heapq.heappush(self._heap, (deadline_s, serial, request_id))

    @property
    def next_s(self) -> float:
        """The earliest of all, also of those who have ended; infinite where there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def take_due(self, now_s: float) -> list[tuple[str, int]]:
        """Ids and serial numbers whose time has come, ended or not."""
        due = []
        while self._heap and self._heap[0][0] <= now_s:
            _, serial, request_id = heapq.heappop(self._heap)
            due.append((request_id, serial))
        return due

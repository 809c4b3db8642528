"""When requests end at the latest.

Knows ids and moments; knows nothing of requests, so that who has ended can be let go of.
"""

from __future__ import annotations

import heapq
import math

_NUM_SPARE = 64
"""Of those who have ended, so many are kept whatever the others are."""


class Deadlines:
    """Moments and ids, the earliest first. Takes memory for the open ones alone, as a deadline may
    be a day away and its request done in a second."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        """The first is open."""
        self._open: set[int] = set()

    def add(self, deadline_s: float, request_id: str, serial: int) -> None:
        """``serial`` tells requests apart that use an id one after another."""
        self._open.add(serial)
        heapq.heappush(self._heap, (deadline_s, serial, request_id))

    def remove(self, serial: int) -> None:
        """The request has ended, or was taken out as due."""
        self._open.discard(serial)
        if len(self._heap) > 2 * len(self._open) + _NUM_SPARE:
            self._heap = [entry for entry in self._heap if entry[1] in self._open]
            heapq.heapify(self._heap)
        self._settle()

    @property
    def next_s(self) -> float:
        """The earliest; infinite where there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def take_due(self, now_s: float) -> list[str]:
        """Ids of those whose time has come."""
        due = []
        while self._heap and self._heap[0][0] <= now_s:
            _, serial, request_id = heapq.heappop(self._heap)
            self._open.remove(serial)
            due.append(request_id)
            self._settle()
        return due

    def check_integrity(self, num_open: int) -> None:
        """Raise AssertionError unless those of ``num_open`` requests are kept, and few others."""
        kept = {serial for _, serial, _ in self._heap}
        assert len(self._open & kept) == len(self._open) == num_open, "a deadline is lost"
        assert len(self._heap) <= 2 * num_open + _NUM_SPARE, "deadlines of the past are kept"

    def _settle(self) -> None:
        """Take out those who have ended, as far as they are first."""
        while self._heap and self._heap[0][1] not in self._open:
            heapq.heappop(self._heap)

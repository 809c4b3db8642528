"""How fast a queue empties, and so when it is worth asking again.

Knows amounts and moments; knows nothing of requests or of the queue's limits.
"""

from __future__ import annotations

import math
from collections import deque

MAX_RETRY_AFTER_S = 60.0
UNMEASURED_RETRY_AFTER_S = 1.0
_NUM_DEPARTURES = 64


class DrainRate:
    """In requests or in tokens a second, measured over the latest departures."""

    def __init__(self) -> None:
        self._departures: deque[tuple[float, int]] = deque(maxlen=_NUM_DEPARTURES)
        self._num_departed = 0
        """The sum of ``_departures``."""
        self._num_refused = 0
        """What was told to come back, less what departed since: that is ahead of the next one."""

    def record_departure(self, now_s: float, amount: int = 1) -> None:
        """So much has left the queue."""
        if len(self._departures) == _NUM_DEPARTURES:
            self._num_departed -= self._departures[0][1]
        self._departures.append((now_s, amount))
        self._num_departed += amount
        if self._num_refused:
            self._num_refused = max(0, self._num_refused - amount)

    def retry_after_s(self, amount: int, now_s: float, room: int = 0) -> float:
        """When there will be place for ``amount`` more, if the queue goes on emptying as it did.

        ``room`` is the place there is already. Refused clients are given one departure each, so
        that they do not all come back at once. A queue that has stopped moving is noticed: its
        rate falls as time passes. No more are counted than make the longest answer, or those that
        never come back would lengthen answers long after.
        """
        self._num_refused += amount
        if not self._departures:
            return UNMEASURED_RETRY_AFTER_S
        elapsed_s = max(now_s - self._departures[0][0], 1e-3)
        rate = self._num_departed / elapsed_s
        most = room + math.ceil(MAX_RETRY_AFTER_S * rate)
        self._num_refused = min(self._num_refused, most)
        return min(max(self._num_refused - room, 1) / rate, MAX_RETRY_AFTER_S)

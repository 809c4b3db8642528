"""Who may come in, who waits in which order, and when it is worth asking again.

Knows requests, their order and the limits; knows nothing of plans or of who runs.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import deque
from operator import attrgetter

from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError, PromptTooLongError, QueueFullError
from octavo.request import Request, RequestStatus

MAX_RETRY_AFTER_S = 60.0
UNMEASURED_RETRY_AFTER_S = 1.0
_NUM_DEPARTURES = 64
_ORDER = attrgetter("order")


def check_can_run(request: Request, config: SchedulerConfig) -> None:
    """Raise InvalidRequestError for a prompt that could not run even alone."""
    num_tokens = request.num_prompt_tokens
    if num_tokens == 0:
        raise InvalidRequestError("the prompt has no tokens; give at least one.", "prompt")
    most = config.max_model_len - (not request.is_prompt_only)
    if num_tokens > most:
        raise PromptTooLongError(
            f"the prompt has {num_tokens} tokens, but max_model_len is {config.max_model_len} "
            f"for the prompt and what is generated; shorten the prompt to {most} tokens.",
            param="prompt",
        )
    num_blocks = -(-num_tokens // config.block_size)
    if num_blocks > config.num_blocks:
        raise PromptTooLongError(
            f"the prompt has {num_tokens} tokens and needs {num_blocks} blocks of "
            f"{config.block_size} tokens, but the KV cache has {config.num_blocks}; shorten the "
            f"prompt to {config.num_blocks * config.block_size} tokens.",
            param="prompt",
        )


def token_limit(request: Request, config: SchedulerConfig) -> int:
    """Prompt and outputs together at which a request ends, whatever it says.

    The last token drawn is never computed, so it needs no place in the cache; and a request
    that had outgrown the whole cache could never be resumed.
    """
    limit = min(config.max_model_len, config.num_blocks * config.block_size + 1)
    if request.params.max_tokens is None:
        return limit
    return min(limit, request.num_prompt_tokens + request.params.max_tokens)


class WaitingQueue:
    """Requests that hold no row, in their order; the preempted ones keep their place."""

    def __init__(self, max_num_waiting: int) -> None:
        self.max_num_waiting = max_num_waiting
        self.num_preempted = 0
        self._requests: list[Request] = []
        self._drain = DrainRate()

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, index: int) -> Request:
        return self._requests[index]

    @property
    def first(self) -> Request | None:
        return self._requests[0] if self._requests else None

    def check_room(self, count: int, now_s: float) -> None:
        """Raise QueueFullError if ``count`` more may not wait; preempted ones do not count."""
        num_waiting = len(self._requests) - self.num_preempted
        if num_waiting + count > self.max_num_waiting:
            retry_after_s = self._drain.retry_after_s(count, now_s)
            raise QueueFullError(
                f"{num_waiting} requests are waiting and max_num_waiting is "
                f"{self.max_num_waiting}; try again in {retry_after_s:.1f} s.",
                retry_after_s,
            )

    def add(self, request: Request) -> None:
        insort(self._requests, request, key=_ORDER)
        self.num_preempted += request.status is RequestStatus.PREEMPTED

    def remove(self, request: Request, now_s: float) -> None:
        """Take out a request that is admitted or ends; called before its status changes."""
        i = bisect_left(self._requests, request.order, key=_ORDER)
        assert self._requests[i] is request, f"{request} is not waiting"
        del self._requests[i]
        if request.status is RequestStatus.PREEMPTED:
            self.num_preempted -= 1
        else:
            self._drain.record_departure(now_s)

    def check_integrity(self) -> None:
        requests = self._requests
        orders = [request.order for request in requests]
        assert orders == sorted(orders), "the waiting queue is out of order"
        preempted = [r for r in requests if r.status is RequestStatus.PREEMPTED]
        assert len(preempted) == self.num_preempted, "the count of preempted requests drifted"
        for request in requests:
            assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED), request
            assert request.row is None, f"{request} waits with a row"
            assert not request.block_ids, f"{request} waits with blocks"
            assert not request.num_computed_tokens, f"{request} waits with computed tokens"


class Deadlines:
    """When requests end at the latest. Holds ids, so that who has ended can be let go of."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []

    def add(self, deadline_s: float, request_id: str, serial: int) -> None:
        """``serial`` tells requests apart that use an id one after another."""
        heapq.heappush(self._heap, (deadline_s, serial, request_id))

    def take_due(self, now_s: float) -> list[tuple[str, int]]:
        """Ids and serial numbers whose time has come, ended or not."""
        due = []
        while self._heap and self._heap[0][0] <= now_s:
            _, serial, request_id = heapq.heappop(self._heap)
            due.append((request_id, serial))
        return due


class DrainRate:
    """How fast the queue empties, measured over its latest departures."""

    def __init__(self) -> None:
        self._departures_s: deque[float] = deque(maxlen=_NUM_DEPARTURES)
        self._num_refused = 0
        """Requests told to come back, less the departures since: those ahead of the next one."""

    def record_departure(self, now_s: float) -> None:
        self._departures_s.append(now_s)
        if self._num_refused:
            self._num_refused -= 1

    def retry_after_s(self, count: int, now_s: float) -> float:
        """When there will be room for ``count`` more, if the queue goes on emptying as it did.

        Refused clients are given one departure each, so that they do not all come back at
        once. A queue that has stopped moving is noticed: its rate falls as time passes.
        """
        self._num_refused += count
        if not self._departures_s:
            return UNMEASURED_RETRY_AFTER_S
        elapsed_s = max(now_s - self._departures_s[0], 1e-3)
        rate = len(self._departures_s) / elapsed_s
        return min(self._num_refused / rate, MAX_RETRY_AFTER_S)

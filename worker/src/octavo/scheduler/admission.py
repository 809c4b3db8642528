"""Who may come in, who waits, who is at its limit, and when it is worth asking again.

Knows requests, tenants and the limits; turns are :mod:`octavo.scheduler.fair_share`'s. Knows
nothing of plans or of blocks.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from operator import attrgetter

from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError, PromptTooLongError, QueueFullError
from octavo.request import Request, RequestStatus
from octavo.scheduler.fair_share import PriorityClass

MAX_RETRY_AFTER_S = 60.0
UNMEASURED_RETRY_AFTER_S = 1.0
_NUM_DEPARTURES = 64
_NUM_REMEMBERED = 256
"""Priorities and tenants that are remembered after their last request."""
_PRIORITY = attrgetter("priority")


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
    """Requests that hold no row: by priority, within one by fair turns between tenants.

    ``max_num_tokens`` bounds the prompt tokens that wait; a request that alone has more may wait
    alone.
    """

    def __init__(self, max_num_waiting: int, max_num_tokens: int) -> None:
        self.max_num_waiting = max_num_waiting
        self.max_num_tokens = max_num_tokens
        self.num_preempted = 0
        self._num_waiting = 0
        self._num_tokens = 0
        self._classes: list[PriorityClass] = []
        """Sorted by priority; the empty ones among them remember what tenants were charged."""
        self._tenants: dict[str, TenantUse] = {}
        self._may_start: dict[str, bool] = {}
        """False for each tenant that is at its limit of running requests."""
        self._drain = DrainRate()
        self._token_drain = DrainRate()
        self._mean_outputs = 0.0
        """Tokens that a request generated, on average over the last ones: what the next is charged
        for in advance, and corrected when it ends."""

    def __len__(self) -> int:
        return self._num_waiting

    @property
    def best_priority(self) -> int | None:
        """Of those who wait; None if nobody does."""
        return next((each.priority for each in self._classes if not each.is_empty), None)

    @property
    def num_deferred(self) -> int:
        """Requests that wait because their tenant runs as many as it may."""
        return sum(
            self._tenants[name].num_waiting for name, may in self._may_start.items() if not may
        )

    @property
    def num_tokens(self) -> int:
        """Prompt tokens that wait, those of preempted requests left out."""
        return self._num_tokens

    def in_order(self) -> Iterator[Request]:
        """Requests in the order of their turns; see :meth:`PriorityClass.in_order`."""
        for each in list(self._classes):
            yield from each.in_order(self._may_start)

    def check_room(self, requests: Sequence[Request], now_s: float) -> None:
        """Raise QueueFullError if these may not wait too; preempted ones do not count."""
        count, tokens = len(requests), sum(map(_waiting_tokens, requests))
        num_waiting = self._num_waiting - self.num_preempted
        tenant = requests[0].tenant
        use = self._tenants.get(tenant.name)
        own = 0 if use is None else use.num_waiting
        if tenant.max_queued is not None and own + count > tenant.max_queued:
            drain = self._drain if use is None else use.drain
            retry_after_s = drain.retry_after_s(count, now_s, room=tenant.max_queued - own)
            raise QueueFullError(
                f"{own} requests of this API key are waiting and it may have {tenant.max_queued}; "
                f"try again in {retry_after_s:.1f} s.",
                retry_after_s,
            )
        if num_waiting + count > self.max_num_waiting:
            room = self.max_num_waiting - num_waiting
            retry_after_s = self._drain.retry_after_s(count, now_s, room=room)
            raise QueueFullError(
                f"{num_waiting} requests are waiting and max_num_waiting is "
                f"{self.max_num_waiting}; try again in {retry_after_s:.1f} s.",
                retry_after_s,
            )
        if num_waiting and self._num_tokens + tokens > self.max_num_tokens:
            # One that alone is too much comes when nothing else waits.
            room = min(self.max_num_tokens - self._num_tokens, tokens)
            retry_after_s = self._token_drain.retry_after_s(tokens, now_s, room=room)
            raise QueueFullError(
                f"{self._num_tokens} prompt tokens are waiting and max_queue_tokens is "
                f"{self.max_num_tokens}; this request has {tokens}. Try again in "
                f"{retry_after_s:.1f} s.",
                retry_after_s,
            )

    def add(self, request: Request) -> None:
        """Let a request wait, from now or again."""
        self._class_of(request.priority).add(request)
        self._num_waiting += 1
        if request.status is RequestStatus.PREEMPTED:
            self.num_preempted += 1
            return
        self._num_tokens += _waiting_tokens(request)
        use = self._tenants.setdefault(request.tenant.name, TenantUse())
        use.num_waiting += 1
        use.max_running = request.tenant.max_running
        self._judge(request.tenant.name, use)

    def start(self, request: Request, num_cached_tokens: int, now_s: float) -> None:
        """Take out a request that gets a row; called before its status changes."""
        self._num_waiting -= 1
        if request.status is RequestStatus.PREEMPTED:
            self._class_of(request.priority).remove(request)
            self.num_preempted -= 1
            return
        outputs = min(self._mean_outputs, request.max_total_tokens - request.num_prompt_tokens)
        request.num_charged_outputs = outputs
        num_tokens = request.num_prompt_tokens - num_cached_tokens + outputs
        self._class_of(request.priority).start(request, num_tokens)
        self._depart(request, now_s)
        use = self._tenants[request.tenant.name]
        use.num_started += 1
        self._judge(request.tenant.name, use)

    def end(self, request: Request, now_s: float) -> None:
        """A request ends, whether it waits or runs; called before its status changes."""
        is_waiting = request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        own = self._class_of(request.priority)
        if is_waiting:
            own.remove(request)
            self._num_waiting -= 1
            self.num_preempted -= request.status is RequestStatus.PREEMPTED
        use = self._tenants[request.tenant.name]
        if request.status is RequestStatus.WAITING:
            self._depart(request, now_s)
        else:
            use.num_started -= 1
            own.charge(request, request.num_output_tokens - request.num_charged_outputs)
            self._mean_outputs += (request.num_output_tokens - self._mean_outputs) / _NUM_DEPARTURES
        self._judge(request.tenant.name, use)
        if not use.num_waiting and not use.num_started and len(self._tenants) > _NUM_REMEMBERED:
            del self._tenants[request.tenant.name]

    def check_integrity(self) -> None:
        """Raise AssertionError unless counts and places agree."""
        assert [each.priority for each in self._classes] == sorted(
            each.priority for each in self._classes
        ), "the classes are out of order"
        requests = [request for each in self._classes for request in each]
        assert len(requests) == self._num_waiting, "the count of waiting requests drifted"
        preempted = [r for r in requests if r.status is RequestStatus.PREEMPTED]
        assert len(preempted) == self.num_preempted, "the count of preempted requests drifted"
        fresh = [r for r in requests if r.status is RequestStatus.WAITING]
        assert sum(map(_waiting_tokens, fresh)) == self._num_tokens, "the count of tokens drifted"
        by_tenant = Counter(r.tenant.name for r in fresh)
        for name, use in self._tenants.items():
            assert by_tenant[name] == use.num_waiting, f"the requests of {name!r} are miscounted"
            assert self._may_start.get(name, True) == use.may_start, f"{name!r} is misjudged"
        for each in self._classes:
            each.check_integrity()
        for request in requests:
            assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED), request
            assert request.row is None, f"{request} waits with a row"
            assert not request.block_ids, f"{request} waits with blocks"
            assert not request.num_computed_tokens, f"{request} waits with computed tokens"

    def _class_of(self, priority: int) -> PriorityClass:
        i = bisect_left(self._classes, priority, key=_PRIORITY)
        if i < len(self._classes) and self._classes[i].priority == priority:
            return self._classes[i]
        if len(self._classes) >= _NUM_REMEMBERED:  # priorities are the client's to choose
            self._classes = [each for each in self._classes if not each.is_empty]
            i = bisect_left(self._classes, priority, key=_PRIORITY)
        fresh = PriorityClass(priority)
        self._classes.insert(i, fresh)
        return fresh

    def _depart(self, request: Request, now_s: float) -> None:
        """A request leaves the queue for the first time."""
        tokens = _waiting_tokens(request)
        self._num_tokens -= tokens
        self._drain.record_departure(now_s)
        if tokens:
            self._token_drain.record_departure(now_s, tokens)
        use = self._tenants[request.tenant.name]
        use.num_waiting -= 1
        use.drain.record_departure(now_s)

    def _judge(self, name: str, use: TenantUse) -> None:
        if use.may_start:
            self._may_start.pop(name, None)
        else:
            self._may_start[name] = False


class TenantUse:
    """What one tenant has waiting and running."""

    __slots__ = ("drain", "max_running", "num_started", "num_waiting")

    def __init__(self) -> None:
        self.num_waiting = 0
        self.num_started = 0
        """Running and preempted."""
        self.max_running: int | None = None
        self.drain = DrainRate()

    @property
    def may_start(self) -> bool:
        """Whether one more of its requests may run."""
        return self.max_running is None or self.num_started < self.max_running


def _waiting_tokens(request: Request) -> int:
    """The n choices of one prompt compute it once."""
    return 0 if request.is_follower else request.num_prompt_tokens


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
    """How fast the queue empties, in requests or in tokens, measured over its latest departures."""

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
        self._num_refused = max(0, self._num_refused - amount)

    def retry_after_s(self, amount: int, now_s: float, room: int = 0) -> float:
        """When there will be place for ``amount`` more, if the queue goes on emptying as it did.

        ``room`` is the place there is already. Refused clients are given one departure each, so
        that they do not all come back at once. A queue that has stopped moving is noticed: its
        rate falls as time passes.
        """
        self._num_refused += amount
        if not self._departures:
            return UNMEASURED_RETRY_AFTER_S
        elapsed_s = max(now_s - self._departures[0][0], 1e-3)
        rate = self._num_departed / elapsed_s
        return min(max(self._num_refused - room, 1) / rate, MAX_RETRY_AFTER_S)

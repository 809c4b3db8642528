"""Who waits, who of them is at a limit, and what is told to those for whom there is no room.

Knows requests, tenants and the queue's limits; turns are :mod:`octavo.scheduler.fair_share`'s.
Knows nothing of plans or of blocks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from operator import attrgetter

from octavo.errors import QueueFullError
from octavo.request import Request, RequestStatus, Tenant
from octavo.scheduler.drain_rate import DrainRate
from octavo.scheduler.fair_share import PriorityClass

_NUM_AVERAGED = 64
"""Ended requests, about, whose lengths make the average."""
_NUM_REMEMBERED = 256
"""Priorities and tenants that are remembered after their last request."""
_PRIORITY = attrgetter("priority")


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
        self._check_tenant(requests[0].tenant, len(requests), now_s)
        self._check_count(len(requests), now_s)
        self._check_tokens(sum(map(_waiting_tokens, requests)), now_s)

    def add(self, request: Request) -> None:
        """Let a request wait, from now or again."""
        self._class_of(request.priority).add(request)
        self._num_waiting += 1
        if request.status is RequestStatus.PREEMPTED:
            self.num_preempted += 1
            return
        self._num_tokens += _waiting_tokens(request)
        use = self._tenants.get(request.tenant.name)
        if use is None:
            use = self._tenants[request.tenant.name] = TenantUse()
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
            self._mean_outputs += (request.num_output_tokens - self._mean_outputs) / _NUM_AVERAGED
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

    def _check_tenant(self, tenant: Tenant, count: int, now_s: float) -> None:
        if tenant.max_queued is None:
            return
        use = self._tenants.get(tenant.name)
        own, started = (0, 0) if use is None else (use.num_waiting, use.num_started)
        # Those that its limit lets run at once do not wait for it.
        room = tenant.max_queued - own + max(0, (tenant.max_running or 0) - started)
        if count > room:
            drain = self._drain if use is None else use.drain
            retry_after_s = drain.retry_after_s(count, now_s, room=room)
            raise QueueFullError(
                f"{own} requests of this API key are waiting and it may have {tenant.max_queued}; "
                f"try again in {retry_after_s:.1f} s.",
                retry_after_s,
            )

    def _check_count(self, count: int, now_s: float) -> None:
        num_waiting = self._num_waiting - self.num_preempted
        if num_waiting + count > self.max_num_waiting:
            room = self.max_num_waiting - num_waiting
            retry_after_s = self._drain.retry_after_s(count, now_s, room=room)
            raise QueueFullError(
                f"{num_waiting} requests are waiting and max_num_waiting is "
                f"{self.max_num_waiting}; try again in {retry_after_s:.1f} s.",
                retry_after_s,
            )

    def _check_tokens(self, tokens: int, now_s: float) -> None:
        # One that alone is too much comes when nothing else waits.
        is_alone = self._num_waiting == self.num_preempted
        if not is_alone and self._num_tokens + tokens > self.max_num_tokens:
            room = min(self.max_num_tokens - self._num_tokens, tokens)
            retry_after_s = self._token_drain.retry_after_s(tokens, now_s, room=room)
            raise QueueFullError(
                f"{self._num_tokens} prompt tokens are waiting and max_queue_tokens is "
                f"{self.max_num_tokens}; this request has {tokens}. Try again in "
                f"{retry_after_s:.1f} s.",
                retry_after_s,
            )

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

"""Whose turn it is among tenants that wait with one priority: start-time fair queueing over tokens.

Each tenant has a virtual time: the tokens that were computed for it. The tenant whose virtual
time is least goes next, and is charged for what it was given; one that comes back after a pause
starts at the class's virtual time, so that silence earns no credit. However many requests a tenant
queues, the first of another waits for one of them at most (Goyal, Vin, Cheng: Start-time Fair
Queueing, 1996; Sheng et al.: Fairness in Serving Large Language Models, 2024).

A tenant's own requests go by (deadline, arrival). Preempted requests go before everyone's: they
were given their turn already. Knows orders and charges; knows nothing of blocks or of limits.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from octavo.request import Request, RequestStatus

_ORDER = attrgetter("order")
_TURN = attrgetter("virtual_tokens", "serial")


class TenantLine:
    """The requests of one tenant that wait with one priority, first first."""

    __slots__ = ("name", "requests", "serial", "virtual_tokens")

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: list[Request] = []
        self.virtual_tokens = 0.0
        """Tokens it was charged for, or those of the class where that was ahead of it."""
        self.serial = 0
        """Of lines with as many, the one that has stood for longer goes first."""


class PriorityClass:
    """Everyone who waits with one priority."""

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.preempted: list[Request] = []
        """Sorted by order."""
        self._lines: dict[str, TenantLine] = {}
        self._turns: list[TenantLine] = []
        """Every line that is not empty, sorted."""
        self._num_activated = 0
        self._virtual_tokens = 0.0
        """Of the line whose request was started last. Nobody who waits is behind it, but tenants
        at their limit, whose next charge takes them here."""

    @property
    def is_empty(self) -> bool:
        return not self._turns and not self.preempted

    def add(self, request: Request) -> None:
        """Let a request wait; a preempted one comes back to the front."""
        if request.status is RequestStatus.PREEMPTED:
            insort(self.preempted, request, key=_ORDER)
            return
        name = request.tenant.name
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = TenantLine(name)
        insort(line.requests, request, key=_ORDER)
        if len(line.requests) == 1:
            line.virtual_tokens = max(line.virtual_tokens, self._virtual_tokens)
            self._num_activated += 1
            line.serial = self._num_activated
            self._take_turn(line)

    def remove(self, request: Request) -> None:
        """Take out a request that starts or ends; called before its status changes."""
        if request.status is RequestStatus.PREEMPTED:
            _take_out(self.preempted, request)
            return
        line = self._lines[request.tenant.name]
        _take_out(line.requests, request)
        if not line.requests:
            self._leave_turns(line)
            self._forget_unless_ahead(line)

    def charge(self, request: Request, num_tokens: float) -> None:
        """Count tokens computed for a request, also one that has long left the line.

        A correction may be negative; it never takes a tenant behind the class.
        """
        line = self._lines.get(request.tenant.name)
        if line is None:
            if num_tokens <= 0:
                return
            line = self._lines[request.tenant.name] = TenantLine(request.tenant.name)
            line.virtual_tokens = self._virtual_tokens
        if line.requests:
            self._leave_turns(line)
        line.virtual_tokens = max(line.virtual_tokens + num_tokens, self._virtual_tokens)
        if line.requests:
            self._take_turn(line)
        else:
            self._forget_unless_ahead(line)

    def start(self, request: Request, num_tokens: float) -> None:
        """Take out a request whose turn has come and charge its tenant."""
        line = self._lines[request.tenant.name]
        self._virtual_tokens = max(self._virtual_tokens, line.virtual_tokens)
        self._leave_turns(line)
        _take_out(line.requests, request)
        line.virtual_tokens = max(line.virtual_tokens + num_tokens, self._virtual_tokens)
        if line.requests:
            self._take_turn(line)
        else:
            self._forget_unless_ahead(line)

    def in_order(self, may_start: dict[str, bool]) -> Iterator[Request]:
        """Requests in the order of their turns, looked up anew after each that was taken out.

        ``may_start`` tells of tenants that are at their limit (False); those are passed over
        whole. A request that is still here when the next one is asked for is passed over, too.
        """
        i = 0
        while i < len(self.preempted):
            request = self.preempted[i]
            yield request
            i += i < len(self.preempted) and self.preempted[i] is request
        passed: dict[str, int] = {}
        turn = 0
        while turn < len(self._turns):
            line = self._turns[turn]
            at = passed.get(line.name, 0)
            if at >= len(line.requests) or not may_start.get(line.name, True):
                turn += 1
                continue
            request = line.requests[at]
            yield request
            if at < len(line.requests) and line.requests[at] is request:
                passed[line.name] = at + 1
            else:
                turn = 0  # its tenant was charged: it may be another's turn

    def __iter__(self) -> Iterator[Request]:
        """Everyone, in no promised order."""
        yield from self.preempted
        for line in self._turns:
            yield from line.requests

    def check_integrity(self) -> None:
        """Raise AssertionError unless lines, turns and orders agree."""
        assert self._turns == sorted(self._turns, key=_TURN), "turns out of order"
        standing = sorted(line.name for line in self._turns)
        waiting = sorted(line.name for line in self._lines.values() if line.requests)
        assert standing == waiting, "a tenant waits without a turn, or has two"
        for requests in (self.preempted, *(line.requests for line in self._lines.values())):
            orders = [request.order for request in requests]
            assert orders == sorted(orders), "requests are out of order"

    def _take_turn(self, line: TenantLine) -> None:
        insort(self._turns, line, key=_TURN)

    def _leave_turns(self, line: TenantLine) -> None:
        """Before what its turn follows from changes."""
        i = bisect_left(self._turns, _TURN(line), key=_TURN)
        assert self._turns[i] is line, f"{line.name} has no turn"
        del self._turns[i]

    def _forget_unless_ahead(self, line: TenantLine) -> None:
        """Who is no further than the class would start there anyway."""
        if line.virtual_tokens <= self._virtual_tokens:
            del self._lines[line.name]


def _take_out(requests: list[Request], request: Request) -> None:
    i = bisect_left(requests, request.order, key=_ORDER)
    assert requests[i] is request, f"{request} is not waiting"
    del requests[i]

"""Every request that asks for work, from its first byte to the one way it ends.

Knows who asked, how much, how long each part took and what came of it; never what was asked. A
record is opened and closed by :class:`octavo.server.boundary.RequestBoundary`, so that none can
be counted twice or not at all.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import time
from collections import deque
from collections.abc import Iterable

from starlette.types import Scope

from octavo.outputs import RequestTimings
from octavo.server.usage import Usage

COUNTED_PATHS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"}
)
"""A POST to one of these is a request; everything else costs nothing worth counting."""
NUM_REMEMBERED = 512
"""Requests that are still shown after their end."""


class Outcome(enum.StrEnum):
    """How a request ended: every one in exactly one of these ways."""

    FINISHED = "finished"
    DEADLINE = "deadline"
    """Its time was up, before or after it had generated something."""
    ABORTED = "aborted"
    """Its client left, or it was cancelled, or the server shut down."""
    REFUSED = "refused"
    """It never ran: not allowed, malformed, unservable, or there was no room."""
    FAILED = "failed"
    """Our fault."""


_OF_FINISH_REASON = {
    "stop": Outcome.FINISHED,
    "length": Outcome.FINISHED,
    "deadline": Outcome.DEADLINE,
    "abort": Outcome.ABORTED,
    "error": Outcome.FAILED,
}
_GRAVITY = (Outcome.FINISHED, Outcome.DEADLINE, Outcome.ABORTED, Outcome.REFUSED, Outcome.FAILED)
"""Of a request with several choices, the gravest end counts."""


class RequestRecord:
    """What is kept of one request."""

    __slots__ = (
        "adapter_wait",
        "answer_id",
        "arrived_s",
        "arrived_unix_s",
        "code",
        "ended_s",
        "engine_id",
        "finish_reasons",
        "first_token_s",
        "id",
        "is_accepted",
        "is_cancelled",
        "key",
        "max_tokens",
        "model",
        "num_choices",
        "outcome",
        "path",
        "priority",
        "status",
        "stream",
        "temperature",
        "timeout_s",
        "timings",
        "top_p",
        "traceparent",
        "usage",
    )

    def __init__(self, id: str, path: str, traceparent: str | None = None) -> None:
        self.id = id
        """As in the answer's X-Request-Id; clients choose it, so it need not be unique."""
        self.answer_id = id
        """In the body of the answer, after its kind; the body of the request may choose it."""
        self.path = path
        self.traceparent = traceparent
        """The W3C trace context that came with it."""
        self.key = ""
        """Name of the API key; empty where none was asked for or none was right."""
        self.model = ""
        self.stream = False
        self.num_choices = 0
        self.max_tokens: int | None = None
        self.temperature: float | None = None
        self.top_p: float | None = None
        self.priority = 0
        self.timeout_s: float | None = None
        self.engine_id: str | None = None
        """Where it has several choices, the engine's ids for them begin with this and a colon."""
        self.is_accepted = False
        """Whether the engine was asked, and did not refuse."""
        self.adapter_wait: asyncio.Timeout | None = None
        """While it waits for its adapter, before the engine hears of it."""
        self.is_cancelled = False
        """An administrator has ended that wait."""
        self.usage: Usage | None = None
        """Live while it runs."""
        self.timings: RequestTimings | None = None
        """Of its choices' phases the longest."""
        self.finish_reasons: list[str] = []
        self.arrived_unix_s = time.time()
        self.arrived_s = time.monotonic()
        self.first_token_s: float | None = None
        self.ended_s: float | None = None
        self.status = 0
        """HTTP status; 0: no answer was begun."""
        self.code: str | None = None
        """The error's, where it ended in one."""
        self.outcome: Outcome | None = None
        """None while it runs."""

    @property
    def age_s(self) -> float:
        """From its arrival until now, or until its end."""
        return (time.monotonic() if self.ended_s is None else self.ended_s) - self.arrived_s

    def remaining_s(self, now_s: float) -> float | None:
        """What is left of its time; None: it has all the time."""
        return None if self.timeout_s is None else self.timeout_s - (now_s - self.arrived_s)

    def cancel_wait(self) -> bool:
        """End its wait for an adapter; False if it waits for none."""
        if self.adapter_wait is None or self.adapter_wait.expired():
            return False
        self.is_cancelled = True
        self.adapter_wait.reschedule(0.0)
        return True

    def end_choice(self, reason: str, timings: RequestTimings | None) -> None:
        """One of its choices ended, with a :class:`octavo.request.FinishReason` value."""
        self.finish_reasons.append(reason)
        if timings is not None:
            self.timings = RequestTimings.longest([self.timings or timings, timings])

    def end_answered(self) -> None:
        """Its answer left as it should."""
        outcomes = [_OF_FINISH_REASON[reason] for reason in self.finish_reasons]
        self.outcome = max(outcomes, key=_GRAVITY.index, default=Outcome.FINISHED)

    def end_in_error(self, status: int, code: str | None) -> None:
        """It is answered with an error."""
        self.code = code
        self.outcome = self._outcome_of(status)

    def _outcome_of(self, status: int) -> Outcome:
        if self.code == "request_aborted" or (self.code == "engine_draining" and self.is_accepted):
            return Outcome.ABORTED
        if status == 504:
            return Outcome.DEADLINE
        if 200 <= status < 300:
            return Outcome.FINISHED
        if status == 500 or (status == 503 and self.is_accepted):
            return Outcome.FAILED
        return Outcome.REFUSED

    def close(self) -> None:
        """Nothing more will happen to it; an end that nobody told follows from the status."""
        self.ended_s = time.monotonic()
        if self.outcome is None:
            self.outcome = self._outcome_of(self.status) if self.status else Outcome.ABORTED


class RequestLedger:
    """All requests that are open, some that have ended, and how many ended which way."""

    def __init__(self) -> None:
        self.outcomes = {outcome.value: 0 for outcome in Outcome}
        self.refusals: dict[str, int] = {}
        """Requests that were refused, by the code of the error."""
        self._numbers = itertools.count()
        self._open: dict[int, RequestRecord] = {}
        self._ended: deque[RequestRecord] = deque(maxlen=NUM_REMEMBERED)

    @property
    def open(self) -> Iterable[RequestRecord]:
        """Oldest first."""
        return self._open.values()

    @property
    def ended(self) -> Iterable[RequestRecord]:
        """The last that ended, latest first."""
        return reversed(self._ended)

    def enter(self, record: RequestRecord) -> int:
        """Count a request as open, under the number that is returned."""
        number = next(self._numbers)
        self._open[number] = record
        return number

    def leave(self, number: int) -> None:
        """Close a record and count how it ended."""
        record = self._open.pop(number)
        record.close()
        assert record.outcome is not None
        self.outcomes[record.outcome.value] += 1
        if record.outcome is Outcome.REFUSED:
            code = record.code or str(record.status)
            self.refusals[code] = self.refusals.get(code, 0) + 1
        self._ended.append(record)


def record_of(scope: Scope) -> RequestRecord:
    """The record of a request to one of :data:`COUNTED_PATHS`."""
    record: RequestRecord = scope["octavo.record"]
    return record

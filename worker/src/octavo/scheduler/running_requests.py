"""The requests that hold a row, and the steps planned for them whose results are awaited.

Knows rows, who computes a prompt and who decodes; decides nothing, and knows nothing of blocks or
of queues.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Iterator
from operator import attrgetter

from octavo.config import SchedulerConfig
from octavo.request import Request, RequestStatus
from octavo.scheduler.decode_group import DecodeGroup
from octavo.scheduler.planned_step import PlannedStep

_ORDER = attrgetter("order")
_MANY_STOP_IDS = 256


class RunningRequests:
    """Each is in ``prefills``, in ``decodes``, or in neither while all the tokens it may draw are
    in flight."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.prefills: list[Request] = []
        """In order."""
        self.decodes = DecodeGroup(config.block_size)
        self.in_flight: deque[PlannedStep] = deque()
        """Oldest first."""
        self.stop_ids: frozenset[int] = frozenset()
        """A superset of the ids at which some request of the decode group may stop."""
        self._requests: dict[Request, None] = {}
        # A row computes at least one token a step, so more rows than tokens would starve some.
        self._num_rows = min(config.max_num_seqs, config.max_num_batched_tokens)
        self._free_rows = list(range(self._num_rows))  # a heap: low rows are used first
        self._released_rows: list[int] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __contains__(self, request: object) -> bool:
        return request in self._requests

    @property
    def has_free_row(self) -> bool:
        return bool(self._free_rows)

    def has_worse_than(self, request: Request) -> bool:
        """Whether anyone runs whom a request may preempt."""
        return any(other.priority > request.priority for other in self._requests)

    def enter(self, request: Request) -> None:
        """Give a free row to a request whose known tokens are to be computed."""
        request.row = heapq.heappop(self._free_rows)
        self._requests[request] = None
        insort(self.prefills, request, key=_ORDER)

    def leave(self, request: Request) -> None:
        """Take its row from a request, whatever of it is in flight."""
        assert request.row is not None, f"{request} has no row"
        del self._requests[request]
        self.decodes.leave(request.row)
        if request in self.prefills:
            self.prefills.remove(request)
        heapq.heappush(self._free_rows, request.row)
        self._released_rows.append(request.row)
        request.row = None
        for step in self.in_flight:
            step.left.add(request)

    def take_released_rows(self) -> list[int]:
        """Rows that were taken from their requests since last asked."""
        rows, self._released_rows = self._released_rows, []
        return rows

    def advance(self, chunks: dict[Request, int]) -> None:
        """Count a planned step: who decodes computes a token, the others what they were granted."""
        self.decodes.advance()
        joining = []
        for request, count in chunks.items():
            request.num_computed_tokens += count
            if request.num_computed_tokens == len(request.token_ids):
                self.prefills.remove(request)
                if not request.is_prompt_only:
                    request.num_in_flight += 1
                    if request.num_tokens < request.max_total_tokens:
                        joining.append(request)  # else its last token is in flight
        if joining:
            self.decodes.join(joining)
            self._note_stop_ids(joining)

    def check_integrity(self) -> None:
        """Raise AssertionError unless rows and groups are those of the requests."""
        self.decodes.check_integrity()
        rows = [*self._free_rows, *(r.row for r in self._requests if r.row is not None)]
        assert sorted(rows) == list(range(self._num_rows)), "a row is lost or shared"
        assert sorted(self.prefills, key=_ORDER) == self.prefills, "prefills are out of order"
        for request in self._requests:
            assert request.status is RequestStatus.RUNNING, f"{request} has a row"
            is_prefill = request in self.prefills
            is_exhausted = not is_prefill and request.num_tokens >= request.max_total_tokens
            is_decode = is_exhausted or request in self.decodes
            assert is_prefill + is_decode == 1, f"{request} is in both groups or none"

    def _note_stop_ids(self, joining: list[Request]) -> None:
        for request in joining:
            if not request.stop_token_ids <= self.stop_ids:
                if len(self.stop_ids) > _MANY_STOP_IDS:
                    self.stop_ids = frozenset().union(*(r.stop_token_ids for r in self._requests))
                self.stop_ids |= request.stop_token_ids

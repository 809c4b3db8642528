"""The running requests that compute one token a step, as parallel lists.

Knows rows, positions and how far each request may still go; knows nothing of blocks or of
queues. This is the part of the scheduler whose cost grows with the batch at every step, so
nothing here makes an object per request, and lists are replaced, never changed in place:
plans share them.
"""

from __future__ import annotations

from operator import sub
from typing import Any

from octavo.batch import BatchPlan
from octavo.request import Request
from octavo.scheduler.prefix_sharers import PrefixSharers


class DecodeGroup:
    """Requests whose next step computes exactly their last token, known or in flight.

    ``requests``, ``rows`` and ``starts`` run in parallel; ``starts`` holds the position each
    computes next.
    """

    def __init__(self, block_size: int) -> None:
        self.requests: list[Request] = []
        self.rows: list[int] = []
        self.starts: list[int] = []
        self.last_starts: list[int] = []
        """The position whose draw is each request's last by length."""
        self.ones: list[int] = []
        """A 1 for each request: tokens it computes."""
        self.trues: list[bool] = []
        """A True for each request: its token is followed by a draw."""
        self.steps_left = 0
        """A lower bound of the steps until some request may not draw any more."""
        self._leaving_rows: set[int] = set()
        self._sharers = PrefixSharers(block_size)
        self._shared_lens: list[int] | None = []
        """None: not known since somebody joined or left."""

    def __contains__(self, request: Request) -> bool:
        return request.row in self.rows and request.row not in self._leaving_rows

    def join(self, requests: list[Request]) -> None:
        """Add requests that have a row and may draw at least one more token, at least one."""
        assert not self._leaving_rows, "settle before anyone joins"
        rows = [request.row for request in requests if request.row is not None]
        assert len(rows) == len(requests), "who decodes has a row"
        left = min(request.max_total_tokens - request.num_tokens for request in requests)
        assert left > 0, "somebody is at its limit"
        self.steps_left = min(self.steps_left, left) if self.requests else left
        self.requests = self.requests + requests
        self.rows = self.rows + rows
        self.starts = self.starts + [request.num_computed_tokens for request in requests]
        # The token after position p is number p + 2 of its sequence.
        self.last_starts = self.last_starts + [r.max_total_tokens - 2 for r in requests]
        for request in requests:
            self._sharers.join(request)
        self._resize()

    def leave(self, row: int) -> None:
        """Mark a row that was taken from its request; :meth:`settle` takes it out, if it is in."""
        self._leaving_rows.add(row)

    def settle(self) -> None:
        """Take out who has left and who has no token left to draw."""
        leaving = self._leaving_rows
        if leaving:
            self._drop([i for i, row in enumerate(self.rows) if row in leaving])
            leaving.clear()
        if self.steps_left <= 0 and self.requests:
            pairs = zip(self.starts, self.last_starts, strict=True)
            self._drop([i for i, (start, last) in enumerate(pairs) if start > last])
            self.steps_left = min(map(sub, self.last_starts, self.starts), default=-1) + 1

    def advance(self) -> None:
        """Count one planned step: every request computes a token and has one more in flight."""
        self.starts = [start + 1 for start in self.starts]
        self.steps_left -= 1
        for request in self.requests:
            request.num_computed_tokens += 1
            request.num_in_flight += 1

    def put_first_in(self, plan: BatchPlan) -> None:
        """Put the group before the rows a plan has; alone, it lends its lists as they are."""
        is_alone = not plan.rows
        plan.rows = self.rows if is_alone else self.rows + plan.rows
        plan.starts = self.starts if is_alone else self.starts + plan.starts
        plan.num_tokens = self.ones if is_alone else self.ones + plan.num_tokens
        plan.samples = self.trues if is_alone else self.trues + plan.samples
        plan.requests = self.requests if is_alone else self.requests + plan.requests
        plan.num_decodes += len(self.requests)
        if self._shared_lens is None:
            self._shared_lens = self._sharers.shared_lens(self.requests)
        plan.shared_lens = self._shared_lens

    def check_integrity(self) -> None:
        """Raise AssertionError unless lists agree with each other and with the requests."""
        lengths = {len(column) for column in (self.requests, self.rows, self.starts)}
        lengths |= {len(self.last_starts), len(self.ones), len(self.trues)}
        assert len(lengths) == 1, "the lists of the decode group differ in length"
        for request, row, start in zip(self.requests, self.rows, self.starts, strict=True):
            if row in self._leaving_rows:
                continue
            assert row == request.row, f"{request} is in row {request.row}, not {row}"
            assert start == request.num_computed_tokens, f"{request} does not start at {start}"
            assert start + 1 == request.num_tokens, f"{request} has more than one to compute"
            left = request.max_total_tokens - request.num_tokens
            assert self.steps_left <= left, f"{request} may draw no more than {left}"

    def _drop(self, indices: list[int]) -> None:
        """Take out some, given in rising order."""
        if not indices:
            return
        columns: tuple[list[Any], ...] = (self.requests, self.rows, self.starts, self.last_starts)
        self._sharers.leave({self.requests[i] for i in indices})
        columns = tuple(list(column) for column in columns)
        for i in reversed(indices):
            for column in columns:
                del column[i]
        self.requests, self.rows, self.starts, self.last_starts = columns
        self._resize()

    def _resize(self) -> None:
        self._shared_lens = None
        count = len(self.requests)
        if count != len(self.ones):
            self.ones = [1] * count
            self.trues = [True] * count

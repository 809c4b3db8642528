"""The running requests that compute one token a step, as parallel lists.

Knows rows, positions and how far each request may still go; knows nothing of blocks or of
queues. This is the part of the scheduler whose cost grows with the batch at every step, so
nothing here makes an object per request, and lists are replaced, never changed in place:
plans share them.
"""

from __future__ import annotations

from octavo.request import Request


class DecodeGroup:
    """Requests whose next step computes exactly their last token, known or in flight.

    ``requests``, ``rows`` and ``starts`` run in parallel; ``starts`` holds the position each
    computes next.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.rows: list[int] = []
        self.starts: list[int] = []
        self.ones: list[int] = []
        """A 1 for each request: tokens it computes."""
        self.trues: list[bool] = []
        """A True for each request: its token is followed by a draw."""
        self.steps_left = 0
        """A lower bound of the steps until some request may not draw any more."""
        self._leaving: set[Request] = set()

    def join(self, request: Request) -> None:
        """Add a request that has a row and may draw at least one more token."""
        left = request.max_total_tokens - request.num_tokens
        assert left > 0, f"{request} is at its limit"
        assert request.row is not None, f"{request} has no row"
        assert not self._leaving, "settle before anyone joins"
        self.steps_left = min(self.steps_left, left) if self.requests else left
        self.requests = [*self.requests, request]
        self.rows = [*self.rows, request.row]
        self.starts = [*self.starts, request.num_computed_tokens]
        self._resize()

    def leave(self, request: Request) -> None:
        """Mark a request that lost its row, in the group or not; :meth:`settle` takes it out."""
        self._leaving.add(request)

    def settle(self) -> None:
        """Take out who has left and who has no token left to draw."""
        leaving = self._leaving
        if leaving:
            keep = [i for i, request in enumerate(self.requests) if request not in leaving]
            leaving.clear()
            if len(keep) < len(self.requests):
                self._keep(keep)
        if self.steps_left <= 0 and self.requests:
            self._drop_exhausted()

    def advance(self) -> None:
        """Count one planned step: every request computes a token and has one more in flight."""
        self.starts = [start + 1 for start in self.starts]
        self.steps_left -= 1
        for request in self.requests:
            request.num_computed_tokens += 1
            request.num_in_flight += 1

    def check_integrity(self) -> None:
        """Raise AssertionError unless lists agree with each other and with the requests."""
        lengths = {len(column) for column in (self.requests, self.rows, self.starts)}
        lengths |= {len(self.ones), len(self.trues)}
        assert len(lengths) == 1, "the lists of the decode group differ in length"
        for request, row, start in zip(self.requests, self.rows, self.starts, strict=True):
            if request in self._leaving:
                continue
            assert row == request.row, f"{request} is in row {request.row}, not {row}"
            assert start == request.num_computed_tokens, f"{request} does not start at {start}"
            assert start + 1 == request.num_tokens, f"{request} has more than one to compute"
            left = request.max_total_tokens - request.num_tokens
            assert self.steps_left <= left, f"{request} may draw no more than {left}"

    def __contains__(self, request: Request) -> bool:
        return request in self.requests and request not in self._leaving

    def _drop_exhausted(self) -> None:
        left = [request.max_total_tokens - request.num_tokens for request in self.requests]
        keep = [i for i, steps in enumerate(left) if steps > 0]
        self.steps_left = min((left[i] for i in keep), default=0)
        if len(keep) < len(left):
            self._keep(keep)

    def _keep(self, indices: list[int]) -> None:
        requests, rows, starts = self.requests, self.rows, self.starts
        self.requests = [requests[i] for i in indices]
        self.rows = [rows[i] for i in indices]
        self.starts = [starts[i] for i in indices]
        self._resize()

    def _resize(self) -> None:
        count = len(self.requests)
        if count != len(self.ones):
            self.ones = [1] * count
            self.trues = [True] * count

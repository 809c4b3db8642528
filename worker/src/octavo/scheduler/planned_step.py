"""A step while it is being planned, and then while its result is awaited.

Knows rows, requests and block ids; decides nothing.
"""

from __future__ import annotations

from octavo.batch import BatchPlan, PromptReading, RowAdmission
from octavo.outputs import RequestUpdate
from octavo.request import Request


class StepDraft:
    """What has been decided of a step so far, apart from the decode group's part."""

    __slots__ = ("admissions", "budget", "chunks", "new_blocks")

    def __init__(self, budget: int) -> None:
        self.budget = budget
        """Tokens that may still be given out."""
        self.admissions: list[RowAdmission] = []
        self.new_blocks: list[tuple[int, int, list[int]]] = []
        self.chunks: dict[Request, int] = {}
        """Tokens of requests that still compute what is known: prompts, and what preemption
        took away."""

    def admit(self, request: Request) -> None:
        """Tell the runner all about a request that has just got a row, and grant it tokens."""
        assert request.row is not None, f"{request} has no row"
        admission = RowAdmission(
            row=request.row,
            token_ids=list(request.token_ids),
            num_prompt_tokens=request.num_prompt_tokens,
            num_cached_tokens=request.num_computed_tokens,
            params=request.params,
            seed=request.seed,
            # Where a grammar holds, its masks say when the text may end.
            stop_token_ids=frozenset() if request.grammar else request.stop_token_ids,
            block_ids=list(request.block_ids),
            adapter_slot=request.adapter_slot,
        )
        self.admissions.append(admission)
        self.grant(request)

    def grant(self, request: Request) -> None:
        """Let a request compute as much of its known tokens as the budget allows."""
        count = min(self.budget, len(request.token_ids) - request.num_computed_tokens)
        assert count > 0, f"nothing to grant to {request}"
        self.chunks[request] = count
        self.budget -= count

    def drop(self, request: Request) -> None:
        """Take back everything given to a request that is about to lose its row."""
        row = request.row
        assert all(admission.row != row for admission in self.admissions), (
            f"{request} is preempted in the step that admits it"
        )
        self.budget += self.chunks.pop(request, 0)
        self.new_blocks = [entry for entry in self.new_blocks if entry[0] != row]

    def plan(self, released_rows: list[int]) -> BatchPlan:
        """The rows granted chunks, those of a single token first."""
        if not self.chunks:  # as in most steps
            return BatchPlan(released_rows=released_rows, new_blocks=self.new_blocks)
        requests = sorted(self.chunks, key=lambda request: self.chunks[request] > 1)
        counts = [self.chunks[request] for request in requests]
        starts = [request.num_computed_tokens for request in requests]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        return BatchPlan(
            released_rows=released_rows,
            admissions=self.admissions,
            new_blocks=self.new_blocks,
            rows=[request.row for request in requests if request.row is not None],
            starts=starts,
            num_tokens=counts,
            samples=[
                end == len(request.token_ids) and not request.is_prompt_only
                for end, request in zip(ends, requests, strict=True)
            ],
            num_decodes=counts.count(1),
            readings=[
                _reading(request, request.row, start, end)
                for request, start, end in zip(requests, starts, ends, strict=True)
                if request.row is not None
                and (request.prompt_logprobs is not None or request.pooling is not None)
            ],
            requests=requests,
        )


def _reading(request: Request, row: int, start: int, end: int) -> PromptReading:
    """What positions ``start : end`` of a prompt are read for."""
    is_scored = request.prompt_logprobs is not None
    # Position p tells of token p + 1, and the last of the prompt of none.
    num_scored = max(0, min(end, request.num_prompt_tokens - 1) - start) if is_scored else 0
    return PromptReading(
        row=row,
        num_scored=num_scored,
        num_top=request.params.prompt_logprobs or 0,
        pooling=request.pooling,
        ends_prompt=end == request.num_prompt_tokens,
    )


class PlannedStep:
    """A plan whose result is not known yet."""

    __slots__ = ("constrained", "last_starts", "left", "may_reach_limit", "num_grouped", "plan")

    def __init__(self, plan: BatchPlan, last_starts: list[int], *, may_reach_limit: bool) -> None:
        self.plan = plan
        self.num_grouped = len(last_starts)
        """The first rows of the plan: those of the decode group."""
        self.last_starts = last_starts
        """For each of them the position whose draw is its request's last by length."""
        self.may_reach_limit = may_reach_limit
        """Whether one of them may start there."""
        self.constrained = {i for i in plan.constrained if i < self.num_grouped}
        """Grouped rows whose tokens a grammar must take in."""
        self.left: set[Request] = set()
        """Requests that lost their row since: their blocks are somebody else's."""

    def special_rows(self, token_ids: list[int], stop_ids: frozenset[int]) -> set[int]:
        """Grouped rows whose request may end with this token, or has lost its row.

        ``token_ids`` begins with those of the grouped rows, all of which draw.
        """
        grouped = token_ids[: self.num_grouped]
        special: set[int] = set(self.constrained)
        if not stop_ids.isdisjoint(grouped):
            special.update(i for i, token_id in enumerate(grouped) if token_id in stop_ids)
        if self.may_reach_limit:
            pairs = zip(self.plan.starts, self.last_starts, strict=False)
            special.update(i for i, (start, last) in enumerate(pairs) if start >= last)
        if self.left:
            requests = self.plan.requests[: self.num_grouped]
            special.update(i for i, request in enumerate(requests) if request in self.left)
        return special

    def append_plain(self, token_ids: list[int], special: set[int]) -> list[RequestUpdate]:
        """Append the tokens of grouped rows that are not special: nearly all of them."""
        requests = self.plan.requests[: self.num_grouped]
        token_ids = token_ids[: self.num_grouped]
        for i in sorted(special, reverse=True):
            del requests[i], token_ids[i]
        for request, token_id in zip(requests, token_ids, strict=True):
            request.token_ids.append(token_id)
            request.num_in_flight -= 1
        return [
            RequestUpdate(request.id, [token_id])
            for request, token_id in zip(requests, token_ids, strict=True)
        ]

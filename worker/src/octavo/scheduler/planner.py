"""What the next step computes: decodes first, then prompts under way, then who waits.

Knows the budget and the order of things; who comes in is :mod:`octavo.scheduler.admitter`'s.
Knows nothing of results. In a step in which nobody arrives or ends, all that is done for each
request is in :mod:`octavo.scheduler.decode_group`.
"""

from __future__ import annotations

from octavo.batch import BatchPlan
from octavo.config import SchedulerConfig
from octavo.request import Request
from octavo.scheduler.admitter import Admitter
from octavo.scheduler.open_requests import OpenRequests
from octavo.scheduler.planned_step import PlannedStep, StepDraft
from octavo.scheduler.preemption import in_order, last_in_order


class Planner:
    """Makes a plan of each step."""

    def __init__(self, requests: OpenRequests, config: SchedulerConfig) -> None:
        self._config = config
        self._requests = requests
        self._running = requests.running
        self._decodes = requests.running.decodes
        self._kv_cache = requests.kv_cache
        self._admitter = Admitter(requests)

    def plan(self, now_s: float) -> BatchPlan | None:
        """The next step, from now on under way; None: there is nothing to compute."""
        self._decodes.settle()
        draft = StepDraft(self._budget())
        is_short = self._extend_decodes(draft)
        draft.budget -= len(self._decodes.requests)
        if self._running.prefills:
            self._continue_prefills(draft, now_s, may_admit=not is_short)
        if self._requests.waiting and not is_short:
            self._admitter.admit(draft, now_s)
        return self._begin(draft)

    def _budget(self) -> int:
        """Tokens of the next step: fewer while requests decode, who all wait for its end."""
        config, num_decodes = self._config, len(self._decodes.requests)
        limit = config.max_num_batched_tokens_while_decoding
        if limit is None or not num_decodes:
            return config.max_num_batched_tokens
        # Prompts move on whatever the limit, or they would wait for all decodes to end.
        return min(config.max_num_batched_tokens, max(limit, num_decodes + config.block_size))

    def _extend_decodes(self, draft: StepDraft) -> bool:
        """Give decodes at the start of a block that block; True if that took preemption."""
        group, block_size = self._decodes, self._config.block_size
        needy = [i for i, start in enumerate(group.starts) if start % block_size == 0]
        if len(needy) > self._kv_cache.num_free_blocks:
            self._extend_by_preempting([group.requests[i] for i in needy], draft)
            return True
        for i in needy:
            fresh = self._kv_cache.extend(group.requests[i])
            draft.new_blocks.append((group.rows[i], group.starts[i] // block_size, fresh))
        return False

    def _extend_by_preempting(self, needy: list[Request], draft: StepDraft) -> None:
        """The same, first in order first; who is last in order gives way, if need be itself."""
        for request in in_order(needy):
            while request.row is not None and not self._kv_cache.num_free_blocks:
                victim = last_in_order(self._running)
                draft.drop(victim)
                self._requests.preempt(victim)
            if request.row is not None:
                first = len(request.block_ids)
                draft.new_blocks.append((request.row, first, self._kv_cache.extend(request)))
        self._decodes.settle()

    def _continue_prefills(self, draft: StepDraft, now_s: float, *, may_admit: bool) -> None:
        """Next chunk of each prompt under way, but not before who waits with better priority."""
        for request in list(self._running.prefills):
            best = self._requests.waiting.best_priority
            if may_admit and best is not None and best < request.priority:
                self._admitter.admit(draft, now_s, request.priority)
            if not draft.budget:
                return
            if request.row is not None:
                draft.grant(request)

    def _begin(self, draft: StepDraft) -> BatchPlan | None:
        """The plan of a draft and the decode group; the counts of its requests move on."""
        group = self._decodes
        if not group.requests and not draft.chunks:
            return None
        plan = draft.plan(self._running.take_released_rows())
        if group.requests:
            group.put_first_in(plan)
        if self._requests.num_constrained:
            plan.constrained = _constrained(plan)
        step = PlannedStep(plan, group.last_starts, may_reach_limit=group.steps_left <= 1)
        self._running.in_flight.append(step)
        self._running.advance(draft.chunks)
        return plan


def _constrained(plan: BatchPlan) -> list[int]:
    """Positions of the rows that draw under a grammar."""
    return [
        i
        for i, request in enumerate(plan.requests)
        if request.grammar is not None and plan.samples[i]
    ]

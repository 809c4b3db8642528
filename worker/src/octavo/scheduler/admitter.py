"""Which of the waiting requests get a row in a step, and who has to make room for them.

Knows turns, priorities and what is free; changes states through
:class:`~octavo.scheduler.open_requests.OpenRequests` alone. Knows nothing of decodes' tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from octavo.request import Request
from octavo.scheduler.open_requests import OpenRequests
from octavo.scheduler.planned_step import StepDraft
from octavo.scheduler.preemption import victims_for

_MAX_PASSED_OVER = 256
"""Waiting requests looked at in vain in one step: those behind them wait for the next ones."""


class Admitter:
    """Admits while the budget of a step lasts."""

    def __init__(self, requests: OpenRequests) -> None:
        self._requests = requests
        self._running = requests.running
        self._kv_cache = requests.kv_cache
        # Blocks that stay free when a request is admitted beside others, so that their next
        # block does not preempt it at once.
        self._watermark = max(1, requests.config.num_blocks // 100)
        self._blocked: tuple[Request, int] | None = None
        """The waiting request that had a row but too few blocks, with nobody of worse priority to
        preempt, and how many blocks were free. It is not looked up again before more are, or one
        of worse priority starts, as can happen while it is passed over. A longer prefix that
        turns up meanwhile is found then."""

    def admit(self, draft: StepDraft, now_s: float, below_priority: float = math.inf) -> None:
        """Give rows and blocks to waiting requests in order, while there is budget.

        The first that does not fit stops those behind it: were they let past, a long prompt
        could wait forever. Who cannot start yet for another reason is passed over.
        """
        # Where decodes alone take all of it, every row is one, and who takes one's place takes its
        # token, too.
        if not draft.budget and self._running.prefills:
            return
        for request in self._candidates(now_s, below_priority):
            prefix = self._make_room(request, draft)
            if prefix is None:
                return
            self._requests.start(request, prefix, now_s)
            if self._blocked is not None and self._blocked[0].priority < request.priority:
                self._blocked = None
            draft.admit(request)
            if not draft.budget:
                return

    def _candidates(self, now_s: float, below_priority: float) -> Iterator[Request]:
        """Those who could compute if they had room, in the order of their turns."""
        requests, adapters = self._requests, self._requests.adapters
        num_passed_over = 0
        absent: set[int] = set()
        """Adapters that are not on the device; however many ask for one, others get their turn."""
        for request in requests.waiting.in_order():
            if request.priority >= below_priority or num_passed_over == _MAX_PASSED_OVER:
                return
            adapter_id = request.adapter_id
            if adapter_id is not None:
                if adapter_id in absent:
                    continue
                if not adapters.can_start(adapter_id, now_s, request.priority):
                    absent.add(adapter_id)
                    continue
            if requests.has_grammar_to_come(request):
                continue  # however many there are, as it may take seconds
            if self._is_ready(request):
                yield request
            else:
                num_passed_over += 1

    def _is_ready(self, request: Request) -> bool:
        """Not while its own tokens are in flight, nor its leader computes the prompt they share."""
        if request.num_in_flight:
            return False
        leader = request.leader
        if leader is None or leader.num_output_tokens or leader.is_finished:
            return True
        has_blocks = request.num_prompt_tokens > self._kv_cache.block_size
        is_shared = has_blocks and request.cache_key is not None
        # What is said of the prompt comes first, with the leader's first token.
        return not is_shared and leader.prompt_logprobs is None

    def _make_room(self, request: Request, draft: StepDraft) -> list[int] | None:
        """The prefix found for a waiting request once it fits, preempting worse priorities."""
        kv_cache, has_row = self._kv_cache, self._running.has_free_row
        num_free = kv_cache.num_free_blocks
        if self._is_blocked(request, num_free):
            return None
        if not has_row and not self._running.has_worse_than(request):
            return None
        prefix = kv_cache.find_prefix(request)
        num_to_take = kv_cache.num_blocks_to_take(request, prefix)
        reserve = self._watermark if self._running else 0
        if has_row and num_to_take + reserve <= num_free:
            return prefix
        victims = victims_for(
            request,
            self._running,
            kv_cache.pool,
            prefix=prefix,
            num_rows=0 if has_row else 1,
            num_blocks=num_to_take - num_free,
            watermark=self._watermark,
        )
        if victims is None:
            if not self._running.has_worse_than(request):
                self._blocked = (request, num_free)
            return None
        self._preempt(victims, draft)
        return prefix

    def _is_blocked(self, request: Request, num_free_blocks: int) -> bool:
        if self._blocked is None:
            return False
        blocked, num_were_free = self._blocked
        return blocked is request and num_free_blocks <= num_were_free

    def _preempt(self, victims: list[Request], draft: StepDraft) -> None:
        """Take all from requests; the budget gets back what the decodes among them had of it."""
        for victim in victims:
            draft.drop(victim)
            self._requests.preempt(victim)
        decodes = self._running.decodes
        num_decodes = len(decodes.requests)
        decodes.settle()
        draft.budget += num_decodes - len(decodes.requests)

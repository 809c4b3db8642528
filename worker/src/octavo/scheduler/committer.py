"""What comes of a step's result: tokens become known, blocks findable, requests end.

Knows what ends a request; knows nothing of what the next step computes. In a step in which nobody
ends, all that is done for each request is in :mod:`octavo.scheduler.planned_step`.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.batch import StepResult
from octavo.outputs import RequestUpdate, TokenLogprobs
from octavo.request import FinishReason, Request
from octavo.scheduler.open_requests import OpenRequests
from octavo.scheduler.planned_step import PlannedStep


class Committer:
    """Takes in the results of steps, in the order in which they were planned."""

    def __init__(self, requests: OpenRequests) -> None:
        self._requests = requests
        self._kv_cache = requests.kv_cache

    def commit(self, step: PlannedStep, result: StepResult) -> list[RequestUpdate]:
        """One update for each token drawn by a request that is still open."""
        self._register_filled(step)  # before tokens: who ends gives its blocks away
        if step.plan.readings:
            self._take_prompts(step, result)
        for i in range(step.num_grouped, len(step.plan.requests)):
            self._end_if_prompt_only(step, i)
        return self._append_tokens(step, result)

    def _register_filled(self, step: PlannedStep) -> None:
        """Make findable the blocks this step has filled. Their tokens are known by now.

        Who lost its row since has other blocks, or none.
        """
        plan, last = step.plan, self._kv_cache.block_size - 1
        requests, starts = plan.requests, plan.starts
        decodes = starts[: plan.num_decodes]
        for i in [i for i, start in enumerate(decodes) if start % (last + 1) == last]:
            if requests[i] not in step.left:
                self._kv_cache.register(requests[i], starts[i], starts[i] + 1)
        for i in range(plan.num_decodes, len(starts)):
            if requests[i] not in step.left:
                self._kv_cache.register(requests[i], starts[i], starts[i] + plan.num_tokens[i])

    def _take_prompts(self, step: PlannedStep, result: StepResult) -> None:
        """What was read of prompts goes to their requests, also to those preempted since."""
        plan = step.plan
        place = {row: i for i, row in enumerate(plan.rows)}
        for reading, read in zip(plan.readings, result.prompts, strict=True):
            i = place[reading.row]
            request = plan.requests[i]
            if request.prompt_logprobs is not None:
                # A preempted prompt starts over, and says the same again.
                del request.prompt_logprobs[plan.starts[i] :]
                request.prompt_logprobs += read.logprobs
            request.embedding = read.embedding

    def _end_if_prompt_only(self, step: PlannedStep, i: int) -> None:
        """End the request in the plan's row ``i`` if its prompt was all it wanted computed."""
        plan, request = step.plan, step.plan.requests[i]
        is_due = request.is_prompt_only and not request.is_finished
        if is_due and plan.starts[i] + plan.num_tokens[i] == request.num_prompt_tokens:
            now_s = request.first_token_s = self._requests.clock()
            self._requests.finish(request, FinishReason.LENGTH)
            update = RequestUpdate(
                request.id,
                [],
                finish_reason=FinishReason.LENGTH.value,
                num_cached_tokens=request.num_cached_tokens,
                timings=request.timings(now_s),
                prompt_logprobs=request.prompt_logprobs,
                embedding=request.embedding,
            )
            self._requests.tell(update)

    def _append_tokens(self, step: PlannedStep, result: StepResult) -> list[RequestUpdate]:
        plan, token_ids = step.plan, result.token_ids
        assert len(token_ids) == sum(plan.samples), (
            f"{len(token_ids)} tokens for {sum(plan.samples)} rows that draw"
        )
        updates: list[RequestUpdate] = []
        others: Sequence[int] = range(len(plan.requests))
        if result.logprobs is None:
            special = step.special_rows(token_ids, self._requests.running.stop_ids)
            updates = step.append_plain(token_ids, special)
            others = [*sorted(special), *others[step.num_grouped :]]
        logprobs = result.logprobs or [None] * len(token_ids)
        drawn = step.num_grouped
        for i in others:
            if not plan.samples[i]:
                continue
            k = i
            if i >= step.num_grouped:
                k, drawn = drawn, drawn + 1
            request = plan.requests[i]
            if not request.is_finished:  # else it ended meanwhile: the token is nobody's
                updates.append(self._append_token(request, token_ids[k], logprobs[k]))
        return updates

    def _append_token(
        self, request: Request, token_id: int, logprobs: TokenLogprobs | None
    ) -> RequestUpdate:
        """One token of one request, which may also be preempted by now."""
        request.num_in_flight -= 1
        request.token_ids.append(token_id)
        update = RequestUpdate(request.id, [token_id], None if logprobs is None else [logprobs])
        is_first = request.num_output_tokens == 1
        update.error = self._end_if_last(request, token_id)
        if is_first:
            request.first_token_s = self._requests.clock()
            update.prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, None
        if request.finish_reason is not None:
            update.finish_reason = request.finish_reason.value
            update.stop_reason = request.stop_reason
            update.timings = request.timings(self._requests.clock())
        if is_first or request.is_finished:
            update.num_cached_tokens = request.num_cached_tokens
        return update

    def _end_if_last(self, request: Request, token_id: int) -> str | None:
        """End a request that goes no further than the token it has just got.

        Returns what is wrong with that token, if anything.
        """
        finish, grammar, num_outputs = (
            self._requests.finish,
            request.grammar,
            request.num_output_tokens,
        )
        if grammar is not None and not grammar.accept(token_id):
            finish(request, FinishReason.ERROR)
            return (
                f"No token could follow the grammar after {num_outputs - 1} tokens: it ends there "
                "or is too complex, or other parameters bar every token that it allows."
            )
        if grammar is not None and grammar.has_ended:
            finish(request, FinishReason.STOP)
        elif token_id in request.stop_token_ids and num_outputs >= request.params.min_tokens:
            is_own = token_id not in request.eos_token_ids
            finish(request, FinishReason.STOP, token_id if is_own else None)
        elif len(request.token_ids) >= request.max_total_tokens:
            finish(request, FinishReason.LENGTH)
        return None

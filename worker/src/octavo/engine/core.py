"""The engine's step: schedule, execute, commit: where deciding and computing meet."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque

from octavo.batch import BatchPlan, Runner, StepHandle
from octavo.engine.messages import RequestSpec
from octavo.errors import InvalidRequestError
from octavo.outputs import STEP_TOKEN_BUCKETS, EngineStats, RequestTimings, RequestUpdate
from octavo.request import Request
from octavo.scheduler.scheduler import Scheduler
from octavo.structured.compiler import GrammarCompiler
from octavo.structured.follower import GrammarFollower
from octavo.structured.masks import MaskFiller

_NAP_S = 0.0005
"""Between looks at a grammar that is being compiled, with nothing else to do."""


class EngineCore:
    """A scheduler and a runner, and up to ``look_ahead`` steps between them.

    Not thread-safe: one loop calls it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        look_ahead: int,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        """``grammars``: None refuses constrained requests."""
        self._scheduler = scheduler
        self._runner = runner
        self._grammars = grammars
        self._masks: MaskFiller | None = None
        self._look_ahead = look_ahead
        self._under_way: deque[tuple[BatchPlan, StepHandle]] = deque()
        self._open: dict[str, Request] = {}
        self._aborted: list[RequestUpdate] = []
        """Ends not told of yet; without them the last request's would wait for the next one's."""
        self._num_steps = 0
        self._step_seconds = 0.0
        self._step_token_counts = [0] * (len(STEP_TOKEN_BUCKETS) + 1)
        self._step_token_sum = 0
        self._generation_tokens = 0

    def submit(self, specs: list[RequestSpec]) -> None:
        """Add the choices of one prompt together, or none of them.

        Raises QueueFullError, or InvalidRequestError when one can never fit.
        """
        now_s = time.monotonic()
        group: dict[str, Request] = {}
        for spec in specs:
            leader = None if spec.leader_id is None else group[spec.leader_id]
            group[spec.id] = _to_request(spec, now_s, leader, self._follower(spec))
        try:
            self._scheduler.add_group(list(group.values()))
        except BaseException:
            for request in group.values():
                if request.grammar is not None:
                    request.grammar.release()
            raise
        self._open |= group

    def abort(self, request_ids: list[str]) -> None:
        """End these requests at once; unknown and finished ones are ignored."""
        for request_id in request_ids:
            self._scheduler.abort(request_id)
        self._aborted += self._scheduler.take_updates()

    @property
    def has_work(self) -> bool:
        """Whether :meth:`step` would do anything."""
        return bool(self._under_way or self._aborted) or self._scheduler.has_work()

    def step(self) -> list[RequestUpdate]:
        """Plan and start a step, then commit the oldest one that is due.

        What a constrained row may draw follows from its token before: a step with such rows
        computes its logits, and draws when the steps before it are committed and the masks made,
        which the host does while the device computes.
        """
        started_s = time.perf_counter()
        num_steps = self._num_steps
        plan = self._scheduler.schedule()
        updates: list[RequestUpdate] = []
        if plan is not None:
            handle = self._runner.execute(plan)
            self._under_way.append((plan, handle))
            if plan.constrained:
                while len(self._under_way) > 1:
                    updates += self._commit()
                self._draw(plan, handle)
        elif not self._under_way and self._scheduler.has_work():
            time.sleep(_NAP_S)  # a grammar is compiled in its thread
        if self._under_way and (plan is None or len(self._under_way) > self._look_ahead):
            updates += self._commit()
        if self._num_steps > num_steps:
            self._step_seconds += time.perf_counter() - started_s
        updates += self._aborted + self._scheduler.take_updates()
        self._aborted = []
        for update in updates:
            if update.finish_reason is not None:
                self._close(update)
        return updates

    def prepare_next(self) -> bool:
        """Use an idle moment to prepare for later steps, for no longer than a request may wait.

        False when nothing is left to prepare. Only while there is no work.
        """
        return self._runner.prepare_next()

    def stats(self) -> EngineStats:
        """Counters and gauges for metrics, as of now."""
        scheduler = self._scheduler.stats()
        num_free = scheduler.num_free_blocks + scheduler.num_cached_blocks
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_blocks=scheduler.num_blocks,
            num_owned_blocks=scheduler.num_blocks - num_free,
            num_cached_blocks=scheduler.num_cached_blocks,
            num_steps=self._num_steps,
            step_seconds=self._step_seconds,
            prompt_tokens=scheduler.num_prompt_tokens,
            cached_prompt_tokens=scheduler.prefix_hits,
            prefix_query_tokens=scheduler.prefix_queries,
            generation_tokens=self._generation_tokens,
            num_preemptions=scheduler.num_preemptions,
            step_token_counts=list(self._step_token_counts),
            step_token_sum=self._step_token_sum,
        )

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix no request holds."""
        self._scheduler.reset_prefix_cache()

    def close(self) -> None:
        """Release the device."""
        self._under_way.clear()
        self._runner.close()
        if self._grammars is not None:
            self._grammars.close()

    def check_integrity(self) -> None:
        """Assert that no block, row, request or grammar is lost."""
        self._scheduler.check_integrity()
        num_constrained = sum(request.grammar is not None for request in self._open.values())
        num_followers = 0 if self._grammars is None else self._grammars.num_open
        assert num_constrained == num_followers, f"{num_followers - num_constrained} grammars leak"

    def _follower(self, spec: RequestSpec) -> GrammarFollower | None:
        if spec.grammar is None:
            return None
        if self._grammars is None:
            raise InvalidRequestError(
                "This engine has no vocabulary to match a grammar against; leave it out.",
                "structured_outputs",
            )
        return self._grammars.follow(spec.grammar, spec.eos_token_ids, spec.params.min_tokens)

    def _draw(self, plan: BatchPlan, handle: StepHandle) -> None:
        """Make the masks of a step's constrained rows and let it draw."""
        if self._masks is None:
            assert self._grammars is not None, "somebody follows a grammar"
            self._masks = MaskFiller(self._grammars, self._runner.mask_memory())
        followers: list[GrammarFollower] = []
        mask_rows: dict[int, int] = {}
        for i in plan.constrained:
            grammar = plan.requests[i].grammar
            if grammar is not None:  # else its request has just ended
                assert isinstance(grammar, GrammarFollower)
                mask_rows[i] = len(followers)
                followers.append(grammar)
        self._masks.fill(followers)
        handle.draw(mask_rows)

    def _commit(self) -> list[RequestUpdate]:
        plan, handle = self._under_way.popleft()
        result = handle.result()
        num_tokens = plan.total_tokens
        self._num_steps += 1
        self._step_token_sum += num_tokens
        self._step_token_counts[bisect_left(STEP_TOKEN_BUCKETS, num_tokens)] += 1
        updates = self._scheduler.commit(plan, result)
        # One update a token: what was drawn for a request that has ended meanwhile is nobody's.
        self._generation_tokens += len(updates)
        return updates

    def _close(self, update: RequestUpdate) -> None:
        """Say where the time of a request went that has just ended."""
        request = self._open.pop(update.request_id)
        now_s = time.monotonic()
        scheduled_s = request.first_scheduled_s or now_s
        first_token_s = request.first_token_s or now_s
        update.timings = RequestTimings(
            queue_s=scheduled_s - request.arrival_s,
            prefill_s=first_token_s - scheduled_s,
            decode_s=now_s - first_token_s,
        )


def _to_request(
    spec: RequestSpec, now_s: float, leader: Request | None, grammar: GrammarFollower | None
) -> Request:
    eos_token_ids = frozenset(spec.eos_token_ids)
    return Request(
        spec.id,
        spec.prompt_token_ids,
        spec.params,
        seed=spec.seed,
        stop_token_ids=eos_token_ids.union(spec.stop_token_ids),
        eos_token_ids=eos_token_ids,
        priority=spec.priority,
        arrival_s=now_s,
        deadline_s=None if spec.timeout_s is None else now_s + spec.timeout_s,
        cache_key=spec.cache_key,
        block_hashes=spec.block_hashes,
        leader=leader,
        grammar=grammar,
    )

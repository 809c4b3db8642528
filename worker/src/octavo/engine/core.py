"""The engine's step: schedule, execute, commit: where deciding and computing meet."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque

from octavo.batch import BatchPlan, Runner, StepHandle
from octavo.engine.adapter_control import AdapterControl
from octavo.engine.messages import AdapterEvent, RequestSpec
from octavo.engine.step_pace import SHORTEST_LIMIT_S, StepPace
from octavo.errors import AdapterError, InvalidRequestError
from octavo.lora.adapter_source import AdapterSource
from octavo.outputs import (
    SCHEDULER_STEP_BUCKETS,
    STEP_TOKEN_BUCKETS,
    EngineStats,
    RequestState,
    RequestTimings,
    RequestUpdate,
)
from octavo.request import Request, RequestStatus
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
        adapters: AdapterControl | None = None,
    ) -> None:
        """``grammars``: None refuses constrained requests; ``adapters``: None those with one."""
        self._scheduler = scheduler
        self._adapters = adapters
        self._runner = runner
        self._grammars = grammars
        self._masks: MaskFiller | None = None
        self._look_ahead = look_ahead
        self.pace = StepPace()
        self._planned: tuple[BatchPlan, int] | None = None
        self._under_way: deque[tuple[BatchPlan, int, StepHandle]] = deque()
        """Plans, how many tokens each computes, and what will come of them; oldest first."""
        self._open: dict[str, Request] = {}
        self._aborted: list[RequestUpdate] = []
        """Ends not told of yet; without them the last request's would wait for the next one's."""
        self._num_steps = 0
        self._step_seconds = 0.0
        self._step_token_counts = [0] * (len(STEP_TOKEN_BUCKETS) + 1)
        self._step_token_sum = 0
        self._scheduler_step_counts = [0] * (len(SCHEDULER_STEP_BUCKETS) + 1)
        self._scheduler_seconds = 0.0
        self._scheduled_s = 0.0
        """What deciding has cost in the step that is being made."""
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

    def open_adapter(
        self, adapter_id: int, source: AdapterSource, known_digest: str | None = None
    ) -> None:
        """Begin to load an adapter; :meth:`take_adapter_events` tells how it ended.

        Raises AdapterError where adapters are not taken.
        """
        if self._adapters is None:
            raise AdapterError(
                "This server takes no adapters; start it with --enable-lora (enable_lora=True)."
            )
        self._adapters.open(adapter_id, source, known_digest)

    def close_adapter(self, adapter_id: int) -> None:
        """Forget an adapter; requests of it that are still open end as if cancelled."""
        if self._adapters is not None:
            self._adapters.close(adapter_id)
            self._aborted += self._scheduler.take_updates()

    def take_adapter_events(self) -> list[AdapterEvent]:
        """What became of adapters, and whom they made wait in vain, since last asked."""
        return [] if self._adapters is None else self._adapters.take_events()

    @property
    def has_work(self) -> bool:
        """Whether :meth:`step` would do anything."""
        if self._under_way or self._aborted or self._scheduler.has_work():
            return True
        return self._adapters is not None and self._adapters.is_busy

    def step(self) -> list[RequestUpdate]:
        """Plan and start a step, then commit the oldest one that is due."""
        self.plan()
        return self.advance()

    def plan(self) -> float:
        """Plan a step; :meth:`advance` carries it out, and has to come next.

        Returns how many seconds that may take before it is taken for stuck.
        """
        started_s = time.perf_counter()
        if self._adapters is not None:
            self._adapters.advance()
        plan = self._scheduler.schedule()
        if self._adapters is not None:
            self._adapters.begin_fills()
        self._scheduled_s = time.perf_counter() - started_s
        num_tokens = 0 if plan is None else plan.total_tokens
        self._planned = None if plan is None else (plan, num_tokens)
        return self.limit_under_way_s + self.pace.limit_s(num_tokens) - SHORTEST_LIMIT_S

    @property
    def limit_under_way_s(self) -> float:
        """How many seconds the steps under way may take before they are taken for stuck."""
        limit_s = SHORTEST_LIMIT_S
        for _, num_tokens, _ in self._under_way:
            limit_s += self.pace.limit_s(num_tokens) - SHORTEST_LIMIT_S
        return limit_s

    def advance(self) -> list[RequestUpdate]:
        """Start the step just planned, then commit the oldest one that is due.

        What a constrained row may draw follows from its token before: a step with such rows
        computes its hidden states, and draws when the steps before it are committed and the masks
        made, which the host does while the device computes.
        """
        started_s = time.perf_counter()
        planned, self._planned = self._planned, None
        updates: list[RequestUpdate] = []
        if planned is not None:
            plan, num_tokens = planned
            handle = self._runner.execute(plan)
            self._under_way.append((plan, num_tokens, handle))
            if plan.constrained:
                while len(self._under_way) > 1:
                    updates += self._commit_timed(started_s)
                self._draw(plan, handle)
        elif not self._under_way and not self._aborted and self.has_work:
            self._wait_for_threads()
        if self._under_way and (planned is None or len(self._under_way) > self._look_ahead):
            updates += self._commit_timed(started_s)
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
            num_deferred=scheduler.num_deferred,
            num_waiting_tokens=scheduler.num_waiting_tokens,
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
            scheduler_step_counts=list(self._scheduler_step_counts),
            scheduler_seconds=self._scheduler_seconds,
            adapters=None if self._adapters is None else self._adapters.stats(),
        )

    def inspect(self) -> list[RequestState]:
        """Where every open request stands."""
        now_s = time.monotonic()
        return [_state(request, now_s) for request in self._open.values()]

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix no request holds."""
        self._scheduler.reset_prefix_cache()

    def close(self) -> None:
        """Release the device."""
        self._under_way.clear()
        if self._adapters is not None:
            self._adapters.shut_down()
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

    def _wait_for_threads(self) -> None:
        """A moment: a grammar is being compiled, or an adapter read or copied."""
        if self._adapters is not None and self._adapters.is_busy:
            self._adapters.wait()
        else:
            time.sleep(_NAP_S)

    def _commit_timed(self, started_s: float) -> list[RequestUpdate]:
        """Commit the oldest step, ``started_s`` being when the turn of the loop began."""
        num_tokens = self._under_way[0][1]
        updates = self._commit()
        seconds = time.perf_counter() - started_s
        self.pace.record(num_tokens, seconds)
        self._step_seconds += seconds + self._scheduled_s
        return updates

    def _commit(self) -> list[RequestUpdate]:
        plan, num_tokens, handle = self._under_way.popleft()
        result = handle.result()
        started_s = time.perf_counter()
        updates = self._scheduler.commit(plan, result)
        self._count_step(num_tokens, time.perf_counter() - started_s)
        # One update a token: what was drawn for a request that has ended meanwhile is nobody's.
        self._generation_tokens += len(updates)
        return updates

    def _count_step(self, num_tokens: int, commit_s: float) -> None:
        self._num_steps += 1
        self._step_token_sum += num_tokens
        self._step_token_counts[bisect_left(STEP_TOKEN_BUCKETS, num_tokens)] += 1
        decided_s = self._scheduled_s + commit_s
        self._scheduler_seconds += decided_s
        self._scheduler_step_counts[bisect_left(SCHEDULER_STEP_BUCKETS, decided_s)] += 1

    def _close(self, update: RequestUpdate) -> None:
        """Say where the time of a request went that has just ended."""
        request = self._open.pop(update.request_id)
        update.timings = _timings(request, time.monotonic())


def _timings(request: Request, now_s: float) -> RequestTimings:
    scheduled_s = request.first_scheduled_s or now_s
    first_token_s = request.first_token_s or now_s
    return RequestTimings(
        queue_s=scheduled_s - request.arrival_s,
        prefill_s=first_token_s - scheduled_s,
        decode_s=now_s - first_token_s,
    )


def _state(request: Request, now_s: float) -> RequestState:
    state = request.status.value
    if request.status is RequestStatus.RUNNING:
        state = "prefill" if request.first_token_s is None else "decode"
    return RequestState(
        request.id,
        state,
        _timings(request, now_s),
        request.num_output_tokens,
        request.num_computed_tokens,
        len(request.block_ids),
        request.num_preemptions,
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
        adapter_id=spec.adapter_id,
        grammar=grammar,
        tenant=spec.tenant,
        pooling=spec.pooling,
    )

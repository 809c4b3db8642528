"""The engine's step: schedule, execute, commit: where deciding and computing meet."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque

from octavo.batch import BatchPlan, Runner, StepHandle
from octavo.engine.adapter_control import AdapterControl
from octavo.engine.messages import AdapterEvent, RequestSpec
from octavo.errors import AdapterError
from octavo.outputs import STEP_TOKEN_BUCKETS, EngineStats, RequestTimings, RequestUpdate
from octavo.request import Request
from octavo.scheduler.scheduler import Scheduler


class EngineCore:
    """A scheduler and a runner, and up to ``look_ahead`` steps between them.

    Not thread-safe: one loop calls it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        look_ahead: int,
        adapters: AdapterControl | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._adapters = adapters
        self._runner = runner
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
            group[spec.id] = _to_request(spec, now_s, leader)
        self._scheduler.add_group(list(group.values()))
        self._open |= group

    def abort(self, request_ids: list[str]) -> None:
        """End these requests at once; unknown and finished ones are ignored."""
        for request_id in request_ids:
            self._scheduler.abort(request_id)
        self._aborted += self._scheduler.take_updates()

    def open_adapter(self, adapter_id: int, path: str, known_digest: str | None = None) -> None:
        """Begin to load an adapter; :meth:`take_adapter_events` tells how it ended.

        Raises AdapterError where adapters are not taken.
        """
        if self._adapters is None:
            raise AdapterError(
                "This server takes no adapters; start it with --enable-lora (enable_lora=True)."
            )
        self._adapters.open(adapter_id, path, known_digest)

    def close_adapter(self, adapter_id: int) -> None:
        """Forget an adapter; requests of it that are still open end with an error."""
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
        started_s = time.perf_counter()
        if self._adapters is not None:
            self._adapters.advance()
        plan = self._scheduler.schedule()
        if self._adapters is not None:
            self._adapters.begin_fills()
        if plan is not None:
            self._under_way.append((plan, self._runner.execute(plan)))
        updates: list[RequestUpdate] = []
        if self._under_way and (plan is None or len(self._under_way) > self._look_ahead):
            updates = self._commit()
            self._step_seconds += time.perf_counter() - started_s
        updates += self._aborted + self._scheduler.take_updates()
        self._aborted = []
        for update in updates:
            if update.finish_reason is not None:
                self._close(update)
        if self._adapters is not None and plan is None and not updates and not self._under_way:
            self._adapters.wait()  # they are all there is to do
        return updates

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
            adapters=None if self._adapters is None else self._adapters.stats(),
        )

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix no request holds."""
        self._scheduler.reset_prefix_cache()

    def close(self) -> None:
        """Release the device."""
        self._under_way.clear()
        if self._adapters is not None:
            self._adapters.shut_down()
        self._runner.close()

    def check_integrity(self) -> None:
        """Assert that no block, row or request is lost."""
        self._scheduler.check_integrity()

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


def _to_request(spec: RequestSpec, now_s: float, leader: Request | None) -> Request:
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
    )

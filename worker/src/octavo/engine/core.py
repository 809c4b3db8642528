"""The engine's step: schedule, execute, commit: where deciding and computing meet."""

from __future__ import annotations

import time
from collections import deque

from octavo.batch import BatchPlan, Runner, StepHandle
from octavo.engine.interface import EngineStats
from octavo.engine.messages import RequestSpec
from octavo.errors import OctavoError
from octavo.outputs import RequestUpdate
from octavo.request import Request
from octavo.scheduler.scheduler import Scheduler


class EngineCore:
    """A scheduler and a runner, and up to ``look_ahead`` steps between them.

    Not thread-safe: one loop calls it.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, look_ahead: int) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._look_ahead = look_ahead
        self._under_way: deque[tuple[BatchPlan, StepHandle]] = deque()
        self._open: dict[str, Request] = {}
        self.num_steps = 0
        self.step_seconds = 0.0

    def submit(self, specs: list[RequestSpec]) -> None:
        """Add the choices of one prompt together, or none of them.

        Raises QueueFullError, or InvalidRequestError when one can never fit.
        """
        requests = []
        for spec in specs:
            request = self._to_request(spec)
            self._open[spec.id] = request
            requests.append(request)
        try:
            self._scheduler.add(requests)
        except OctavoError:
            for spec in specs:
                del self._open[spec.id]
            raise

    def abort(self, request_ids: list[str]) -> None:
        """End these requests at once; unknown and finished ones are ignored."""
        for request_id in request_ids:
            self._scheduler.abort(request_id)

    @property
    def has_work(self) -> bool:
        """Whether :meth:`step` would do anything."""
        return bool(self._under_way) or self._scheduler.has_work()

    def step(self) -> list[RequestUpdate]:
        """Plan and start a step, then commit the oldest one that is due."""
        started = time.perf_counter()
        plan = self._scheduler.schedule()
        if plan is not None:
            self._under_way.append((plan, self._runner.execute(plan)))
        updates: list[RequestUpdate] = []
        if self._under_way and (plan is None or len(self._under_way) > self._look_ahead):
            done, handle = self._under_way.popleft()
            updates = self._scheduler.commit(done, handle.result())
            self.num_steps += 1
        updates += self._scheduler.take_updates()
        for update in updates:
            if update.finish_reason is not None:
                self._open.pop(update.request_id, None)
        self.step_seconds += time.perf_counter() - started
        return updates

    def fail_all(self, message: str) -> list[RequestUpdate]:
        """End every open request with an error: the last words of a broken engine."""
        self._under_way.clear()
        self._scheduler.fail_all(message)
        self._open.clear()
        return self._scheduler.take_updates()

    def stats(self) -> EngineStats:
        """Counters and gauges for metrics, as of now."""
        return self._scheduler.stats()

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix no request holds."""
        self._scheduler.reset_prefix_cache()

    def has_room(self, num_requests: int) -> bool:
        """Whether that many requests can be submitted without meeting a full queue."""
        return self._scheduler.has_room(num_requests)

    def close(self) -> None:
        """Release the device."""
        self._under_way.clear()
        self._runner.close()

    def check_integrity(self) -> None:
        """Assert that no block, row or request is lost."""
        self._scheduler.check_integrity()

    def _to_request(self, spec: RequestSpec) -> Request:
        now = time.monotonic()
        return Request(
            spec.id,
            spec.prompt_token_ids,
            spec.params,
            seed=spec.seed,
            stop_token_ids=frozenset(spec.stop_token_ids),
            priority=spec.priority,
            arrival_s=now,
            deadline_s=None if spec.timeout_s is None else now + spec.timeout_s,
            cache_key=spec.cache_key,
            block_hashes=spec.block_hashes,
            leader=None if spec.leader_id is None else self._open.get(spec.leader_id),
        )

"""Who computes what in each step: the door to the deciding wing.

Knows requests, their order, the limits and which tokens are known; knows nothing of tensors,
text or HTTP. The engine's core calls it from one thread::

    add, abort ─► schedule() ─► BatchPlan ─► runner ─► StepResult ─► commit() ─► RequestUpdates
        │             │                                                 │
        │         Planner ─► Admitter                               Committer
        ▼             ▼         ▼                                       ▼
    ┌──────────────── OpenRequests: states, and what goes with them ────────────────┐
    │    WaitingQueue    RunningRequests    KVCacheManager    AdapterSlots          │
    └───────────────────────────────────────────────────────────────────────────────┘

There are no phases. In each step every running request's computed tokens catch up with its
tokens, as far as one budget allows: requests with a single token to compute first, then prompts
in chunks, then who waits: by priority, within one by turns between tenants
(:mod:`octavo.scheduler.fair_share`), of one tenant by (deadline, arrival). The budget is smaller
while requests decode, since a step's length is the time between their tokens.

Up to ``max_tokens_in_flight`` steps are planned before the result of the first is known. Such a
plan lets a request compute a token the host has not seen: it lies in the request's row on the
device. What the host learns too late does no harm, because the device carries out plans in
order. A request may end, or lose its row and blocks, while a planned step still writes there:
the next owner's steps come after that step and overwrite what it wrote, and no block is
registered as a prefix before a committed step has filled it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Sequence

from octavo.batch import BatchPlan, StepResult
from octavo.config import SchedulerConfig
from octavo.outputs import EngineStats, RequestUpdate
from octavo.request import FinishReason, Request
from octavo.scheduler.adapter_slots import AdapterSlots
from octavo.scheduler.committer import Committer
from octavo.scheduler.open_requests import OpenRequests
from octavo.scheduler.planner import Planner


class Scheduler:
    """Plans steps and takes in their results.

    ``clock`` is the one that requests' ``arrival_s`` and ``deadline_s`` are read from, in
    seconds.
    """

    def __init__(
        self, config: SchedulerConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_in_flight = config.max_tokens_in_flight
        self._clock = clock
        self._requests = OpenRequests(config, clock)
        self._in_flight = self._requests.running.in_flight
        self._planner = Planner(self._requests, config)
        self._committer = Committer(self._requests)

    @property
    def adapters(self) -> AdapterSlots:
        """Whose slots the device has, and who asks for one."""
        return self._requests.adapters

    # ---- Arrivals and departures ------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Take in one request; raises as :meth:`add_group` does."""
        self.add_group([request])

    def add_group(self, requests: Sequence[Request]) -> None:
        """Take in the choices of one request, n of each prompt, all or none; leaders before their
        children.

        Raises QueueFullError when they may not wait, PromptTooLongError when they can never
        run, UnknownModelError for an adapter that is not loaded, InvalidRequestError for an id in
        use, an empty prompt or more than may ever wait.
        """
        self._requests.add_group(requests)

    def abort(self, request_id: str) -> bool:
        """End a request at once; False if there is no such request (any more)."""
        return self._requests.end(request_id, FinishReason.ABORT)

    def fail(self, request_id: str, message: str) -> bool:
        """End one request with an error; False if there is no such request (any more)."""
        return self._requests.end(request_id, FinishReason.ERROR, message)

    def fail_all(self, message: str) -> None:
        """End every request with an error and forget the steps under way: they are not to be
        committed any more."""
        for request in list(self._requests):
            self._requests.end(request.id, FinishReason.ERROR, message)
        self._in_flight.clear()

    def requests(self) -> Iterator[Request]:
        """Every open one."""
        return iter(self._requests)

    def waiting_for(self, adapter_ids: Container[int | None]) -> list[Request]:
        """The requests of these adapters that have no row."""
        return [r for r in self._requests if r.adapter_id in adapter_ids and r.row is None]

    def requests_of(self, adapter_id: int) -> list[str]:
        """Ids of all open requests of an adapter."""
        return [r.id for r in self._requests if r.adapter_id == adapter_id]

    def take_updates(self) -> list[RequestUpdate]:
        """Ends that came about outside :meth:`commit` since the last call."""
        return self._requests.take_updates()

    @property
    def has_updates(self) -> bool:
        """Whether there is something to take."""
        return self._requests.has_updates

    def has_work(self) -> bool:
        """Whether a request is open or a step under way."""
        return bool(self._requests or self._in_flight)

    @property
    def next_deadline_s(self) -> float:
        """When the next request may be overdue; infinite where none has a deadline."""
        return self._requests.next_deadline_s

    # ---- Steps ------------------------------------------------------------------------------

    def schedule(self) -> BatchPlan | None:
        """Plan the next step; None: nothing can be done before a commit or an arrival.

        The plan's lists may be shared with other plans: readers must not change them.
        """
        now_s = self._clock()
        self._requests.end_overdue(now_s)
        if len(self._in_flight) > self._max_in_flight:
            return None
        self._requests.look_at_grammars()
        return self._planner.plan(now_s)

    def commit(self, plan: BatchPlan, result: StepResult) -> list[RequestUpdate]:
        """Take in the oldest plan's result: tokens become known, requests end.

        Returns one update for each token drawn by a request that is still open.
        """
        step = self._in_flight.popleft()
        assert step.plan is plan, "plans are committed in order"
        return self._committer.commit(step, result)

    # ---- Accounts ---------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """As of now, what it knows of them; the rest is zeros."""
        requests, kv_cache = self._requests, self._requests.kv_cache
        return EngineStats(
            num_running=len(requests.running),
            num_waiting=len(requests.waiting),
            num_deferred=requests.waiting.num_deferred,
            num_waiting_tokens=requests.waiting.num_tokens,
            num_blocks=kv_cache.pool.num_blocks,
            num_owned_blocks=kv_cache.pool.num_owned,
            num_cached_blocks=kv_cache.pool.num_cached,
            num_preemptions=requests.num_preemptions,
            prompt_tokens=requests.num_prompt_tokens,
            prefix_query_tokens=kv_cache.prefix_queries,
            cached_prompt_tokens=kv_cache.prefix_hits,
        )

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no request holds."""
        self._requests.kv_cache.pool.forget_cached()

    def check_integrity(self) -> None:
        """Raise AssertionError unless states, rows and blocks agree. O(blocks + requests)."""
        self._requests.check_integrity()

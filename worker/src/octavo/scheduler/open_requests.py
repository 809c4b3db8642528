"""Every request from its arrival to its end: the one owner of their states and what goes with them.

::

    add_group ──► WAITING ── start ──► RUNNING ── finish, end ──► (gone)
                     ▲                    │
                     └───── preempt ──────┘

A request that waits is in the queue and counted by its adapter; one that runs has a row, blocks and
its adapter's slot; either may have a deadline and a grammar. Here these change together, so that
none is ever lost. Who starts and who gives way is decided elsewhere
(:mod:`octavo.scheduler.admitter`, :mod:`octavo.scheduler.planner`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from octavo.cache.kv_cache_manager import KVCacheManager
from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError, UnknownModelError
from octavo.outputs import RequestUpdate
from octavo.request import FinishReason, Request, RequestGroup, RequestStatus
from octavo.scheduler.adapter_slots import AdapterSlots
from octavo.scheduler.arrival import check_can_run, check_group_size, token_limit
from octavo.scheduler.deadlines import Deadlines
from octavo.scheduler.running_requests import RunningRequests
from octavo.scheduler.waiting_queue import WaitingQueue


class OpenRequests:
    """``waiting`` and ``running`` together hold each of them once."""

    def __init__(self, config: SchedulerConfig, clock: Callable[[], float]) -> None:
        self.config = config
        self.clock = clock
        self.waiting = WaitingQueue(config.max_num_waiting, config.max_queue_tokens)
        self.running = RunningRequests(config)
        self.kv_cache = KVCacheManager(config.num_blocks, config.block_size)
        self.adapters = AdapterSlots(config.num_adapter_slots)
        self.num_constrained = 0
        """Those with a grammar."""
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        """Of all that ever started."""
        self._by_id: dict[str, Request] = {}
        self._deadlines = Deadlines()
        self._uncompiled: dict[Request, None] = {}
        """Waiting requests whose grammar was not compiled when last looked at."""
        self._updates: list[RequestUpdate] = []
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._by_id.values())

    # ---- Arrival ----------------------------------------------------------------------------

    def add_group(self, requests: Sequence[Request]) -> None:
        """See :meth:`octavo.scheduler.scheduler.Scheduler.add_group`."""
        for request in requests:
            check_can_run(request, self.config)
            self._check_names(request)
        check_group_size(requests, self.config)
        self.waiting.check_room(requests, self.clock())
        group = RequestGroup()
        for request in requests:
            request.group = group
            self._add(request)

    def _check_names(self, request: Request) -> None:
        """Raise InvalidRequestError for an id in use, UnknownModelError for an adapter gone."""
        if request.id in self._by_id:
            raise InvalidRequestError(
                f"request id {request.id!r} is in use; choose another.", param="request_id"
            )
        if request.adapter_id is not None and request.adapter_id not in self.adapters:
            raise UnknownModelError(
                f"adapter {request.adapter_id} is not loaded (any more); load it again.",
                param="model",
            )

    def _add(self, request: Request) -> None:
        request.max_total_tokens = token_limit(request, self.config)
        deadline_s = math.inf if request.deadline_s is None else request.deadline_s
        self._num_added += 1
        request.order = (request.priority, deadline_s, request.arrival_s, self._num_added)
        self.kv_cache.prepare(request)
        self._by_id[request.id] = request
        if request.grammar is not None:
            self.num_constrained += 1
            self._uncompiled[request] = None
        if request.deadline_s is not None:
            self._deadlines.add(deadline_s, request.id, self._num_added)
        self._wait(request)

    # ---- From waiting to running and back ---------------------------------------------------

    def start(self, request: Request, prefix: list[int], now_s: float) -> None:
        """Give a waiting request a row and blocks for all known tokens, ``prefix`` first."""
        num_cached_tokens = len(prefix) * self.config.block_size
        self.waiting.start(request, num_cached_tokens, now_s)
        if request.adapter_id is not None:
            self.adapters.stop_waiting(request.adapter_id, request.priority)
            request.adapter_slot = self.adapters.start(request.adapter_id, request.priority)
        self.kv_cache.allocate(request, prefix)
        self.running.enter(request)
        request.transition(RequestStatus.RUNNING)
        request.group.has_begun = True
        request.num_computed_tokens = num_cached_tokens
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now_s
            request.num_cached_tokens = num_cached_tokens
            self.num_prompt_tokens += request.num_prompt_tokens

    def preempt(self, request: Request) -> None:
        """Take row and blocks from a running request; it keeps its tokens and its place."""
        self._release(request)
        request.transition(RequestStatus.PREEMPTED)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._wait(request)

    def _wait(self, request: Request) -> None:
        self.waiting.add(request)
        if request.adapter_id is not None:
            self.adapters.wait(request.adapter_id, request.priority)

    def _release(self, request: Request) -> None:
        self.running.leave(request)
        self.kv_cache.free(request)
        if request.adapter_id is not None:
            self.adapters.end(request.adapter_id)
            request.adapter_slot = None

    # ---- End --------------------------------------------------------------------------------

    def finish(
        self, request: Request, reason: FinishReason, stop_reason: int | None = None
    ) -> None:
        """The one way out, whatever the request is doing. Who calls this tells of it."""
        self.waiting.end(request, self.clock())
        if request.status is RequestStatus.RUNNING:
            self._release(request)
        elif request.adapter_id is not None:
            self.adapters.stop_waiting(request.adapter_id, request.priority)
        request.transition(RequestStatus.FINISHED)
        request.finish_reason = reason
        request.stop_reason = stop_reason
        request.leader = None
        if request.grammar is not None:
            request.grammar.release()
            request.grammar = None
            self.num_constrained -= 1
        if request.deadline_s is not None:
            self._deadlines.remove(request.order[-1])
        del self._by_id[request.id]

    def end(self, request_id: str, reason: FinishReason, error: str | None = None) -> bool:
        """Finish a request and tell of it; False if there is none of that id (any more)."""
        request = self._by_id.get(request_id)
        if request is None:
            return False
        self.finish(request, reason)
        update = RequestUpdate(
            request_id,
            [],
            finish_reason=reason.value,
            num_cached_tokens=request.num_cached_tokens,
            error=error,
            timings=request.timings(self.clock()),
        )
        self.tell(update)
        return True

    @property
    def next_deadline_s(self) -> float:
        """Not before it does :meth:`end_overdue` anything."""
        return self._deadlines.next_s

    def end_overdue(self, now_s: float) -> None:
        """End those whose deadline has come."""
        for request_id in self._deadlines.take_due(now_s):
            self.end(request_id, FinishReason.DEADLINE)

    def tell(self, update: RequestUpdate) -> None:
        """Keep what :meth:`take_updates` is to return."""
        self._updates.append(update)

    @property
    def has_updates(self) -> bool:
        """Whether :meth:`take_updates` has something to return."""
        return bool(self._updates)

    def take_updates(self) -> list[RequestUpdate]:
        """What was told since last asked."""
        updates, self._updates = self._updates, []
        return updates

    # ---- Grammars ---------------------------------------------------------------------------

    def has_grammar_to_come(self, request: Request) -> bool:
        """Whether its grammar was not compiled when last looked at."""
        return request in self._uncompiled

    def look_at_grammars(self) -> None:
        """See whose grammar is compiled by now, and end those whose cannot be."""
        if not self._uncompiled:
            return
        uncompiled, self._uncompiled = self._uncompiled, {}
        for request in uncompiled:
            grammar = request.grammar
            if grammar is None:
                continue  # ended meanwhile
            if not grammar.is_ready:
                self._uncompiled[request] = None
            elif grammar.error is not None:
                self.end(request.id, FinishReason.ERROR, grammar.error)

    def check_integrity(self) -> None:
        """Raise AssertionError unless states, rows and blocks agree. O(blocks + requests)."""
        self.kv_cache.check_integrity(self.running)
        self.waiting.check_integrity()
        self.running.check_integrity()
        assert len(self) == len(self.running) + len(self.waiting), "a request is lost"
        for request in self.running:
            assert self._by_id.get(request.id) is request, f"{request} is not registered"
        adapted = [request for request in self if request.adapter_id is not None]
        self.adapters.check_integrity(
            Counter(
                r.adapter_id for r in adapted if r.adapter_id is not None and r.row is not None
            ),
            Counter(r.adapter_id for r in adapted if r.adapter_id is not None and r.row is None),
        )
        self._deadlines.check_integrity(sum(r.deadline_s is not None for r in self))
        num_constrained = sum(request.grammar is not None for request in self)
        assert num_constrained == self.num_constrained, "a grammar is lost"

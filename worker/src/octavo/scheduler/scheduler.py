"""Who computes what in each step: the only owner of request states, rows and blocks.

Knows requests, their order, the limits and which tokens are known; knows nothing of tensors,
text or HTTP. The engine's core calls it from one thread::

    add, abort ─► schedule() ─► BatchPlan ─► runner ─► StepResult ─► commit() ─► RequestUpdates

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

import heapq
import math
import time
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Sequence
from operator import attrgetter

from octavo.batch import BatchPlan, StepResult
from octavo.cache.kv_cache_manager import KVCacheManager
from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError, UnknownModelError
from octavo.outputs import RequestUpdate, TokenLogprobs
from octavo.request import FinishReason, Request, RequestStatus
from octavo.scheduler.adapter_slots import AdapterSlots
from octavo.scheduler.admission import Deadlines, WaitingQueue, check_can_run, token_limit
from octavo.scheduler.decode_group import DecodeGroup
from octavo.scheduler.planned_step import PlannedStep, StepDraft
from octavo.scheduler.preemption import last_in_order, victims_for
from octavo.scheduler.stats import SchedulerStats

_ORDER = attrgetter("order")
_MANY_STOP_IDS = 256
_MAX_PASSED_OVER = 256
"""Waiting requests looked at in vain in one step: those behind them wait for the next ones."""


class Scheduler:
    """Plans steps and takes in their results.

    ``clock`` is the one that requests' ``arrival_s`` and ``deadline_s`` are read from, in
    seconds.
    """

    def __init__(
        self, config: SchedulerConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.kv_cache = KVCacheManager(
            config.num_blocks,
            config.block_size,
            enable_prefix_caching=config.enable_prefix_caching,
        )
        self.adapters = AdapterSlots(config.num_adapter_slots)
        self._clock = clock
        self._requests: dict[str, Request] = {}
        self._waiting = WaitingQueue(config.max_num_waiting, config.max_queue_tokens)
        self._running: dict[Request, None] = {}
        """Requests with a row. Each is in ``_prefills``, in ``_decodes``, or in neither while
        all the tokens it may draw are in flight."""
        self._prefills: list[Request] = []
        self._decodes = DecodeGroup(config.block_size)
        # A row computes at least one token a step, so more rows than tokens would starve some.
        self._num_rows = min(config.max_num_seqs, config.max_num_batched_tokens)
        self._free_rows = list(range(self._num_rows))  # a heap: low rows are used first
        self._released_rows: list[int] = []
        # Blocks that stay free when a request is admitted beside others, so that their next
        # block does not preempt it at once.
        self._watermark = max(1, config.num_blocks // 100)
        self._blocked: tuple[Request, int] | None = None
        """The waiting request that had a row but too few blocks, with nobody of worse priority to
        preempt, and how many blocks were free. It is not looked up again before more are: as
        long as it stands first nobody of worse priority can start. A longer prefix that turns
        up meanwhile is found then."""
        self._in_flight: deque[PlannedStep] = deque()
        self._unready: list[Request] = []
        """Waiting requests whose grammar was not compiled when last looked at."""
        self._num_constrained = 0
        """Open requests with a grammar."""
        self._deadlines = Deadlines()
        self._updates: list[RequestUpdate] = []
        self._stop_ids: frozenset[int] = frozenset()
        """A superset of the ids at which some request of the decode group may stop."""
        self._num_added = 0
        self._num_preemptions = 0
        self._num_prompt_tokens = 0

    # ---- Arrivals and departures ------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Take in one request; raises as :meth:`add_group` does."""
        self.add_group([request])

    def add_group(self, requests: Sequence[Request]) -> None:
        """Take in the n choices of one request, all or none; leaders before their children.

        Raises QueueFullError when they may not wait, PromptTooLongError when they can never
        run, InvalidRequestError for an id in use, an empty prompt or more than may ever wait.
        """
        for request in requests:
            check_can_run(request, self.config)
            if request.id in self._requests:
                raise InvalidRequestError(
                    f"request id {request.id!r} is in use; choose another.", param="request_id"
                )
            if request.adapter_id is not None and request.adapter_id not in self.adapters:
                raise UnknownModelError(
                    f"adapter {request.adapter_id} is not loaded (any more); load it again.",
                    param="model",
                )
        if len(requests) > self.config.max_num_waiting:
            raise InvalidRequestError(
                f"n is {len(requests)}, but at most {self.config.max_num_waiting} requests may "
                "wait (max_num_waiting); ask for fewer choices.",
                param="n",
            )
        self._waiting.check_room(requests, self._clock())
        for request in requests:
            self._enqueue(request)

    def abort(self, request_id: str) -> bool:
        """End a request at once; False if there is no such request (any more)."""
        return self._end(request_id, FinishReason.ABORT)

    def fail(self, request_id: str, message: str) -> bool:
        """End one request with an error; False if there is no such request (any more)."""
        return self._end(request_id, FinishReason.ERROR, message)

    def fail_all(self, message: str) -> None:
        """End every request with an error and give up the steps under way."""
        for request_id in list(self._requests):
            self._end(request_id, FinishReason.ERROR, message)
        self._in_flight.clear()

    def waiting_for(self, adapter_id: int) -> list[Request]:
        """The requests of an adapter that have no row."""
        return [
            request
            for request in self._requests.values()
            if request.adapter_id == adapter_id and request.row is None
        ]

    def requests_of(self, adapter_id: int) -> list[str]:
        """Ids of all open requests of an adapter."""
        return [r.id for r in self._requests.values() if r.adapter_id == adapter_id]

    def take_updates(self) -> list[RequestUpdate]:
        """Ends that came about outside :meth:`commit` since the last call."""
        updates, self._updates = self._updates, []
        return updates

    def has_work(self) -> bool:
        """Whether a request is open or a step under way."""
        return bool(self._requests or self._in_flight)

    # ---- Planning ---------------------------------------------------------------------------

    def schedule(self) -> BatchPlan | None:
        """Plan the next step; None: nothing can be done before a commit or an arrival.

        The plan's lists may be shared with other plans: readers must not change them.
        """
        now_s = self._clock()
        for request_id, serial in self._deadlines.take_due(now_s):
            request = self._requests.get(request_id)
            if request is not None and request.order[-1] == serial:
                self._end(request_id, FinishReason.DEADLINE)
        if len(self._in_flight) > self.config.max_tokens_in_flight:
            return None
        if self._unready:
            self._look_after_unready()
        self._decodes.settle()
        draft = StepDraft(self._budget())
        is_short = self._extend_decodes(draft)
        draft.budget -= len(self._decodes.requests)
        if self._prefills:
            self._continue_prefills(draft, now_s, may_admit=not is_short)
        if self._waiting and not is_short:
            self._admit(draft, now_s, math.inf)
        return self._make_plan(draft)

    def _budget(self) -> int:
        """Tokens of the next step: fewer while requests decode, who all wait for its end."""
        config, num_decodes = self.config, len(self._decodes.requests)
        limit = config.max_num_batched_tokens_while_decoding
        if limit is None or not num_decodes:
            return config.max_num_batched_tokens
        # Prompts move on whatever the limit, or they would wait for all decodes to end.
        return min(config.max_num_batched_tokens, max(limit, num_decodes + config.block_size))

    def _extend_decodes(self, draft: StepDraft) -> bool:
        """Give decodes at the start of a block that block; True if that took preemption."""
        group, block_size = self._decodes, self.config.block_size
        needy = [i for i, start in enumerate(group.starts) if start % block_size == 0]
        if len(needy) > self.kv_cache.num_free_blocks:
            self._extend_by_preempting([group.requests[i] for i in needy], draft)
            return True
        for i in needy:
            fresh = self.kv_cache.extend(group.requests[i])
            draft.new_blocks.append((group.rows[i], group.starts[i] // block_size, fresh))
        return False

    def _extend_by_preempting(self, needy: list[Request], draft: StepDraft) -> None:
        """The same, first in order first; who is last in order gives way, if need be itself."""
        for request in sorted(needy, key=_ORDER):
            while request.row is not None and not self.kv_cache.num_free_blocks:
                self._preempt(last_in_order(self._running), draft)
            if request.row is not None:
                first = len(request.block_ids)
                draft.new_blocks.append((request.row, first, self.kv_cache.extend(request)))
        self._decodes.settle()

    def _continue_prefills(self, draft: StepDraft, now_s: float, *, may_admit: bool) -> None:
        """Next chunk of each prompt under way, but not before who waits with better priority."""
        for request in list(self._prefills):
            best = self._waiting.best_priority
            if may_admit and best is not None and best < request.priority:
                self._admit(draft, now_s, request.priority)
            if not draft.budget:
                return
            if request.row is not None:
                draft.grant(request)

    def _admit(self, draft: StepDraft, now_s: float, below_priority: float) -> None:
        """Give rows and blocks to waiting requests in order, while there is budget.

        The first that does not fit stops those behind it: were they let past, a long prompt
        could wait forever. Who cannot start yet for another reason is passed over.
        """
        if not draft.budget:
            return
        num_passed_over = 0
        absent: set[int] = set()
        """Adapters that are not on the device; however many ask for one, others get their turn."""
        for request in self._waiting.in_order():
            if request.priority >= below_priority or num_passed_over == _MAX_PASSED_OVER:
                return
            adapter_id = request.adapter_id
            if adapter_id is not None:
                if adapter_id in absent:
                    continue
                if not self.adapters.can_start(adapter_id, now_s):
                    absent.add(adapter_id)
                    continue
            if not self._is_ready(request):
                num_passed_over += 1
                continue
            prefix = self._make_room(request, draft)
            if prefix is None:
                return
            self._start(request, prefix, draft, now_s)
            if not draft.budget:
                return

    def _is_ready(self, request: Request) -> bool:
        """Not while its own tokens are in flight, nor its leader computes the prompt they share."""
        if request.num_in_flight or (self._unready and request in self._unready):
            return False
        leader = request.leader
        if leader is None:
            return True
        if leader.num_output_tokens == 0 and not leader.is_finished:
            has_blocks = request.num_prompt_tokens > self.config.block_size
            is_shared = has_blocks and self.kv_cache.can_share(request)
            # What is said of the prompt comes first, with the leader's first token.
            if is_shared or leader.prompt_logprobs is not None:
                return False
        request.leader = None
        return True

    def _make_room(self, request: Request, draft: StepDraft) -> list[int] | None:
        """The prefix found for a waiting request once it fits, preempting worse priorities."""
        kv_cache, has_row = self.kv_cache, bool(self._free_rows)
        free = kv_cache.num_free_blocks
        if self._blocked is not None and self._blocked[0] is request and free <= self._blocked[1]:
            return None
        if not has_row and not self._runs_worse_than(request):
            return None
        prefix = kv_cache.find_prefix(request)
        to_take = kv_cache.num_blocks_to_take(request, prefix)
        reserve = self._watermark if self._running else 0
        if has_row and to_take + reserve <= free:
            return prefix
        victims = victims_for(
            request,
            self._running,
            kv_cache.pool,
            prefix=prefix,
            num_rows=0 if has_row else 1,
            num_blocks=to_take - free,
            watermark=self._watermark,
        )
        if victims is None:
            if not self._runs_worse_than(request):
                self._blocked = (request, free)
            return None
        for victim in victims:
            self._preempt(victim, draft)
        num_decodes = len(self._decodes.requests)
        self._decodes.settle()
        draft.budget += num_decodes - len(self._decodes.requests)
        return prefix

    def _look_after_unready(self) -> None:
        """See whose grammar is compiled by now, and end those whose cannot be."""
        unready, self._unready = self._unready, []
        for request in unready:
            grammar = request.grammar
            if grammar is None:
                continue  # ended meanwhile
            if not grammar.is_ready:
                self._unready.append(request)
            elif grammar.error is not None:
                self._end(request.id, FinishReason.ERROR, grammar.error)

    def _runs_worse_than(self, request: Request) -> bool:
        return any(other.priority > request.priority for other in self._running)

    def _start(self, request: Request, prefix: list[int], draft: StepDraft, now_s: float) -> None:
        """Give a row, blocks for all known tokens and a first chunk."""
        self._waiting.start(request, len(prefix) * self.config.block_size, now_s)
        if request.adapter_id is not None:
            self.adapters.stop_waiting(request.adapter_id)
            request.adapter_slot = self.adapters.start(request.adapter_id)
        self.kv_cache.allocate(request, prefix)
        row = request.row = heapq.heappop(self._free_rows)
        request.transition(RequestStatus.RUNNING)
        self._running[request] = None
        insort(self._prefills, request, key=_ORDER)
        request.num_computed_tokens = len(prefix) * self.config.block_size
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now_s
            request.num_cached_tokens = request.num_computed_tokens
            self._num_prompt_tokens += request.num_prompt_tokens
        draft.admit(request, row)

    def _make_plan(self, draft: StepDraft) -> BatchPlan | None:
        """The plan of a draft and the decode group; the counts of its requests move on."""
        group = self._decodes
        num_grouped = len(group.requests)
        if not num_grouped and not draft.chunks:
            return None
        plan = draft.plan(self._released_rows)
        self._released_rows = []
        if num_grouped:
            group.put_first_in(plan)
        if self._num_constrained:
            plan.constrained = [
                i
                for i, request in enumerate(plan.requests)
                if request.grammar is not None and plan.samples[i]
            ]
        step = PlannedStep(plan, group.last_starts, may_reach_limit=group.steps_left <= 1)
        self._in_flight.append(step)
        group.advance()
        for request, count in draft.chunks.items():
            request.num_computed_tokens += count
            if request.num_computed_tokens == len(request.token_ids):
                self._prefills.remove(request)
                if not request.is_prompt_only:
                    request.num_in_flight += 1
                    self._join_decodes(request)
        return plan

    def _join_decodes(self, request: Request) -> None:
        if request.num_tokens >= request.max_total_tokens:
            return  # its last token is in flight
        self._decodes.join(request)
        if not request.stop_token_ids <= self._stop_ids:
            if len(self._stop_ids) > _MANY_STOP_IDS:
                self._stop_ids = frozenset().union(*(r.stop_token_ids for r in self._running))
            self._stop_ids |= request.stop_token_ids

    # ---- Results ----------------------------------------------------------------------------

    def commit(self, plan: BatchPlan, result: StepResult) -> list[RequestUpdate]:
        """Take in the oldest plan's result: tokens become known, requests end.

        Returns one update for each token drawn by a request that is still open. A plan given
        up by :meth:`fail_all` changes nothing.
        """
        if not self._in_flight or self._in_flight[0].plan is not plan:
            assert all(r.is_finished for r in plan.requests), "plans are committed in order"
            return []
        step = self._in_flight.popleft()
        if self.config.enable_prefix_caching:
            self._register_filled(step)  # before tokens: who ends gives its blocks away
        if plan.readings:
            self._take_prompts(step, result)
        for i in range(step.num_grouped, len(plan.requests)):
            self._end_if_prompt_only(step, i)
        return self._append_tokens(step, result)

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
            request.first_token_s = self._clock()
            self._finish(request, FinishReason.LENGTH)
            update = RequestUpdate(
                request.id,
                [],
                finish_reason=FinishReason.LENGTH.value,
                num_cached_tokens=request.num_cached_tokens,
                prompt_logprobs=request.prompt_logprobs,
                embedding=request.embedding,
            )
            self._updates.append(update)

    def _register_filled(self, step: PlannedStep) -> None:
        """Make findable the blocks this step has filled. Their tokens are known by now.

        Who lost its row since has other blocks, or none.
        """
        plan, last = step.plan, self.config.block_size - 1
        requests, starts = plan.requests, plan.starts
        decodes = starts[: plan.num_decodes]
        for i in [i for i, start in enumerate(decodes) if start % (last + 1) == last]:
            if requests[i] not in step.left:
                self.kv_cache.register(requests[i], starts[i], starts[i] + 1)
        for i in range(plan.num_decodes, len(starts)):
            if requests[i] not in step.left:
                self.kv_cache.register(requests[i], starts[i], starts[i] + plan.num_tokens[i])

    def _append_tokens(self, step: PlannedStep, result: StepResult) -> list[RequestUpdate]:
        plan, token_ids = step.plan, result.token_ids
        assert len(token_ids) == sum(plan.samples), (
            f"{len(token_ids)} tokens for {sum(plan.samples)} rows that draw"
        )
        updates: list[RequestUpdate] = []
        others: Sequence[int] = range(len(plan.requests))
        if result.logprobs is None:
            special = step.special_rows(token_ids, self._stop_ids)
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
        num_outputs = request.num_output_tokens
        grammar = request.grammar
        if grammar is not None and not grammar.accept(token_id):
            self._finish(request, FinishReason.ERROR)
            update.error = (
                f"No token could follow the grammar after {num_outputs - 1} tokens: it ends there "
                "or is too complex, or other parameters bar every token that it allows."
            )
        elif grammar is not None and grammar.has_ended:
            self._finish(request, FinishReason.STOP)
        elif token_id in request.stop_token_ids and num_outputs >= request.params.min_tokens:
            is_own = token_id not in request.eos_token_ids
            self._finish(request, FinishReason.STOP, token_id if is_own else None)
        elif len(request.token_ids) >= request.max_total_tokens:
            self._finish(request, FinishReason.LENGTH)
        if request.finish_reason is not None:
            update.finish_reason = request.finish_reason.value
            update.stop_reason = request.stop_reason
        if num_outputs == 1:
            request.first_token_s = self._clock()
            update.prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, None
        if request.is_finished or num_outputs == 1:
            update.num_cached_tokens = request.num_cached_tokens
        return update

    # ---- States -----------------------------------------------------------------------------

    def _enqueue(self, request: Request) -> None:
        request.max_total_tokens = token_limit(request, self.config)
        deadline_s = math.inf if request.deadline_s is None else request.deadline_s
        self._num_added += 1
        request.order = (request.priority, deadline_s, request.arrival_s, self._num_added)
        self.kv_cache.prepare(request)
        self._requests[request.id] = request
        if request.grammar is not None:
            self._num_constrained += 1
            self._unready.append(request)
        self._waiting.add(request)
        if request.adapter_id is not None:
            self.adapters.wait(request.adapter_id)
        if request.deadline_s is not None:
            self._deadlines.add(deadline_s, request.id, self._num_added)

    def _end(self, request_id: str, reason: FinishReason, error: str | None = None) -> bool:
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._finish(request, reason)
        update = RequestUpdate(
            request_id,
            [],
            finish_reason=reason.value,
            num_cached_tokens=request.num_cached_tokens,
            error=error,
        )
        self._updates.append(update)
        return True

    def _finish(
        self, request: Request, reason: FinishReason, stop_reason: int | None = None
    ) -> None:
        """The one way out, whatever the request is doing."""
        self._waiting.end(request, self._clock())
        if request.status is RequestStatus.RUNNING:
            self._release(request)
        elif request.adapter_id is not None:
            self.adapters.stop_waiting(request.adapter_id)
        request.transition(RequestStatus.FINISHED)
        request.finish_reason = reason
        request.stop_reason = stop_reason
        request.leader = None
        if request.grammar is not None:
            request.grammar.release()
            request.grammar = None
            self._num_constrained -= 1
        del self._requests[request.id]

    def _preempt(self, request: Request, draft: StepDraft) -> None:
        """Take row and blocks from a running request; it keeps its tokens and its place."""
        assert request.row is not None
        draft.drop(request, request.row)
        self._release(request)
        request.transition(RequestStatus.PREEMPTED)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self._num_preemptions += 1
        self._waiting.add(request)
        if request.adapter_id is not None:
            self.adapters.wait(request.adapter_id)

    def _release(self, request: Request) -> None:
        """Take row and blocks from a running request."""
        assert request.row is not None
        del self._running[request]
        self._decodes.leave(request.row)
        if request in self._prefills:
            self._prefills.remove(request)
        self.kv_cache.free(request)
        heapq.heappush(self._free_rows, request.row)
        self._released_rows.append(request.row)
        request.row = None
        if request.adapter_id is not None:
            self.adapters.end(request.adapter_id)
            request.adapter_slot = None
        for step in self._in_flight:
            step.left.add(request)

    # ---- Accounts ---------------------------------------------------------------------------

    def stats(self) -> SchedulerStats:
        kv_cache = self.kv_cache
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_preempted=self._waiting.num_preempted,
            num_deferred=self._waiting.num_deferred,
            num_waiting_tokens=self._waiting.num_tokens,
            kv_usage=kv_cache.usage,
            num_blocks=kv_cache.pool.num_blocks,
            num_cached_blocks=kv_cache.pool.num_cached,
            num_free_blocks=kv_cache.num_free_blocks - kv_cache.pool.num_cached,
            num_preemptions=self._num_preemptions,
            num_prompt_tokens=self._num_prompt_tokens,
            prefix_queries=kv_cache.prefix_queries,
            prefix_hits=kv_cache.prefix_hits,
        )

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no request holds."""
        self.kv_cache.pool.forget_cached()

    def check_integrity(self) -> None:
        """Raise AssertionError unless states, rows and blocks agree. O(blocks + requests)."""
        self.kv_cache.check_integrity(self._running)
        self._waiting.check_integrity()
        self._decodes.check_integrity()
        assert len(self._requests) == len(self._running) + len(self._waiting), "a request is lost"
        rows = [*self._free_rows, *(r.row for r in self._running if r.row is not None)]
        assert sorted(rows) == list(range(self._num_rows)), "a row is lost or shared"
        assert sorted(self._prefills, key=_ORDER) == self._prefills, "prefills are out of order"
        self.adapters.check_integrity(
            Counter(r.adapter_id for r in self._running if r.adapter_id is not None),
            Counter(
                r.adapter_id
                for r in self._requests.values()
                if r.adapter_id is not None and r.row is None
            ),
        )
        num_constrained = sum(r.grammar is not None for r in self._requests.values())
        assert num_constrained == self._num_constrained, "a grammar is lost"
        for request in self._running:
            assert request.status is RequestStatus.RUNNING, f"{request} has a row"
            assert self._requests.get(request.id) is request, f"{request} is not registered"
            is_prefill = request in self._prefills
            is_exhausted = not is_prefill and request.num_tokens >= request.max_total_tokens
            is_decode = is_exhausted or request in self._decodes
            assert is_prefill + is_decode == 1, f"{request} is in both groups or none"

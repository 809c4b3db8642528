"""The engine's step: schedule, execute, commit: where deciding and computing meet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from octavo.batch import BatchPlan, Runner, StepHandle
from octavo.engine.adapter_control import AdapterControl
from octavo.engine.carried_requests import from_spec, to_state
from octavo.engine.constrained_rows import ConstrainedRows
from octavo.engine.messages import AdapterEvent, RequestSpec
from octavo.engine.step_accounts import StepAccounts
from octavo.engine.step_pace import SHORTEST_LIMIT_S, StepPace
from octavo.engine.waker import Waker
from octavo.errors import AdapterError
from octavo.grammar import Grammar
from octavo.lora.adapter_source import AdapterSource
from octavo.outputs import EngineStats, RequestState, RequestUpdate
from octavo.request import Request
from octavo.scheduler.scheduler import Scheduler
from octavo.structured.compiler import GrammarCompiler

LONGEST_SLEEP_S = 1.0
"""However long nothing comes with time alone."""


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
        """``grammars``: None refuses constrained requests; ``adapters``: None those with one.
        Their threads wake :attr:`waker` from now on."""
        self.waker = Waker()
        """Woken when a thread has ended something that the next step takes in."""
        if grammars is not None:
            grammars.when_done(self.waker.wake)
        if adapters is not None:
            adapters.when_done(self.waker.wake)
        self._scheduler = scheduler
        self._adapters = adapters
        self._runner = runner
        self._constrained = ConstrainedRows(grammars, runner)
        self._look_ahead = look_ahead
        self.pace = StepPace()
        self._planned: tuple[BatchPlan, int] | None = None
        self._has_stopped = False
        """Whether the last step did nothing."""
        self._under_way: deque[tuple[BatchPlan, int, StepHandle]] = deque()
        """Plans, how many tokens each computes, and what will come of them; oldest first."""
        self._accounts = StepAccounts()

    def submit(self, specs: list[RequestSpec]) -> None:
        """Add the choices of prompts that were asked as one together, or none of them.

        Raises QueueFullError, or InvalidRequestError when one can never fit.
        """
        now_s = time.monotonic()
        group: dict[str, Request] = {}
        for spec in specs:
            leader = None if spec.leader_id is None else group[spec.leader_id]
            group[spec.id] = from_spec(spec, now_s, leader, self._constrained.follower(spec))
        try:
            self._scheduler.add_group(list(group.values()))
        except BaseException:
            for request in group.values():
                if request.grammar is not None:
                    request.grammar.release()
            raise

    def abort(self, request_ids: list[str]) -> None:
        """End these requests at once; unknown and finished ones are ignored."""
        for request_id in request_ids:
            self._scheduler.abort(request_id)

    def grammar_faults(self, grammars: Sequence[Grammar]) -> dict[Grammar, str]:
        """Which of these grammars cannot be compiled, and why; waits until that is known. Those
        that can are kept for requests to come, as far as there is room."""
        return self._constrained.faults(grammars, self.waker)

    def give_up(self) -> None:
        """End all requests, of which nothing more is told, and forget the steps under way: for
        whoever goes on after an exception, of which a step may be half done."""
        self._planned = None
        self._under_way.clear()
        self._scheduler.fail_all("A step was given up.")
        self._scheduler.take_updates()

    def open_adapter(
        self, adapter_id: int, source: AdapterSource, known_digest: str | None = None
    ) -> None:
        """Begin to load an adapter; :meth:`take_adapter_events` tells how it ended.

        Raises AdapterError where adapters are not taken.
        """
        if self._adapters is None:
            raise AdapterError(
                "No adapters are taken; start the server with --enable-lora, or LLM with "
                "enable_lora=True."
            )
        self._adapters.open(adapter_id, source, known_digest)

    def close_adapter(self, adapter_id: int) -> None:
        """Forget an adapter; requests of it that are still open end as if cancelled."""
        if self._adapters is not None:
            self._adapters.close(adapter_id)

    def take_adapter_events(self) -> list[AdapterEvent]:
        """What became of adapters, and whom they made wait in vain, since last asked."""
        return [] if self._adapters is None else self._adapters.take_events()

    @property
    def has_work(self) -> bool:
        """Whether requests are open, or there is something to take in or to tell."""
        return self._scheduler.has_work() or self._has_news

    @property
    def sleep_s(self) -> float:
        """How long a step would do nothing, unless a message comes or :attr:`waker` is woken.

        0 where it may do something now. Where the last one did nothing, what keeps requests from
        starting is with threads, which wake, or ends with time alone: then until the earliest
        moment that does something, a deadline as a rule.
        """
        if self._has_news:
            return 0.0
        if not self._scheduler.has_work():
            return LONGEST_SLEEP_S
        if not self._has_stopped:
            return 0.0
        now_s = time.monotonic()
        next_s = self._scheduler.next_deadline_s
        if self._adapters is not None:
            next_s = min(next_s, self._adapters.next_look_s(now_s))
        return min(max(0.0, next_s - now_s), LONGEST_SLEEP_S)

    @property
    def _has_news(self) -> bool:
        # Without the ends not told of yet the last request's would wait for the next one's.
        if self._under_way or self._scheduler.has_updates:
            return True
        return self._adapters is not None and self._adapters.is_busy

    def step(self) -> list[RequestUpdate]:
        """Plan and start a step, then commit the oldest one that is due.

        Where that is nothing, waits for threads: for callers that wait for nothing else.
        """
        self.plan()
        updates = self.advance()
        if self._has_stopped and (sleep_s := self.sleep_s):
            self.waker.wait(sleep_s)
        return updates

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
        self._accounts.planned(time.perf_counter() - started_s)
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
        has_steps = planned is not None or bool(self._under_way)
        updates: list[RequestUpdate] = []
        if planned is not None:
            plan, num_tokens = planned
            handle = self._runner.execute(plan)
            self._under_way.append((plan, num_tokens, handle))
            if plan.constrained:
                while len(self._under_way) > 1:
                    updates += self._commit_timed(started_s)
                self._constrained.draw(plan, handle)
        elif self._adapters is not None and not (self._under_way or self._scheduler.has_updates):
            self._adapters.wait_for_copy()
        if self._under_way and (planned is None or len(self._under_way) > self._look_ahead):
            updates += self._commit_timed(started_s)
        updates += self._scheduler.take_updates()
        self._has_stopped = not has_steps and not updates
        return updates

    @property
    def is_reading_adapters(self) -> bool:
        """Whether threads read adapters' files that are there, or convert them."""
        return self._adapters is not None and self._adapters.is_reading

    def prepare_next(self) -> bool:
        """Use an idle moment to prepare for later steps, for no longer than a request may wait.

        False when nothing is left to prepare. Only while there is no work.
        """
        return self._runner.prepare_next()

    def prepare_grammars(self) -> None:
        """Begin to load what grammars are compiled with, unless that was begun: for a long quiet,
        as a request that comes meanwhile waits for some tenths of a second."""
        self._constrained.prepare()

    def stats(self) -> EngineStats:
        """Counters and gauges for metrics, as of now."""
        stats = self._scheduler.stats()
        self._accounts.add_to(stats)
        stats.adapters = None if self._adapters is None else self._adapters.stats()
        return stats

    def inspect(self) -> list[RequestState]:
        """Where every open request stands."""
        now_s = time.monotonic()
        return [to_state(request, now_s) for request in self._scheduler.requests()]

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix no request holds."""
        self._scheduler.reset_prefix_cache()

    def close(self) -> None:
        """Release the device."""
        self._under_way.clear()
        if self._adapters is not None:
            self._adapters.shut_down()
        self._runner.close()
        self._constrained.close()

    def check_integrity(self) -> None:
        """Assert that no block, row, request, adapter or grammar is lost."""
        self._scheduler.check_integrity()
        if self._adapters is not None:
            self._adapters.check_integrity()
        num_constrained = sum(r.grammar is not None for r in self._scheduler.requests())
        num_leaked = self._constrained.num_open - num_constrained
        assert not num_leaked, f"{num_leaked} grammars leak"

    def _commit_timed(self, started_s: float) -> list[RequestUpdate]:
        """Commit the oldest step, ``started_s`` being when the turn of the loop began."""
        num_tokens = self._under_way[0][1]
        updates = self._commit()
        seconds = time.perf_counter() - started_s
        self.pace.record(num_tokens, seconds)
        self._accounts.advanced(seconds)
        return updates

    def _commit(self) -> list[RequestUpdate]:
        plan, num_tokens, handle = self._under_way.popleft()
        result = handle.result()
        started_s = time.perf_counter()
        self._constrained.take_in(plan, result.token_ids)
        updates = self._scheduler.commit(plan, result)
        # One update a token: what was drawn for a request that has ended meanwhile is nobody's.
        self._accounts.committed(num_tokens, len(updates), time.perf_counter() - started_s)
        return updates

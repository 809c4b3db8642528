"""A scheduler, a runner that checks it and a clock one can move: a small engine for tests."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from octavo.batch import BatchPlan, StepResult
from octavo.config import SchedulerConfig
from octavo.outputs import RequestUpdate
from octavo.request import EVERYONE, Request, Tenant
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from slot_checking_runner import SlotCheckingRunner, reference_outputs

EOS = 0
CONFIG = SchedulerConfig(
    max_model_len=64,
    max_num_seqs=4,
    max_num_batched_tokens=16,
    max_num_waiting=64,
    block_size=4,
    num_blocks=32,
    enable_prefix_caching=True,
    max_tokens_in_flight=0,
)


def make_request(
    id: str,
    prompt: list[int] | int = 6,
    *,
    max_tokens: int | None = 8,
    min_tokens: int = 0,
    stop: frozenset[int] = frozenset(),
    has_eos: bool = False,
    priority: int = 0,
    arrival_s: float = 0.0,
    deadline_s: float | None = None,
    tenant: int | None = 1,
    leader: Request | None = None,
    on_behalf_of: Tenant = EVERYONE,
    adapter_id: int | None = None,
) -> Request:
    """A request; an int as prompt: so many tokens nobody else has; tenant None: shares nothing
    (``tenant`` is the cache's, ``on_behalf_of`` the queue's)."""
    number = sum(ord(c) * 31**i for i, c in enumerate(id)) % 65536
    seed = number + ((number if tenant is None else tenant) << 16)
    if isinstance(prompt, int):
        prompt = [1000 + number * 100 + i for i in range(prompt)]
    return Request(
        id,
        prompt,
        SamplingParams(max_tokens=max_tokens, min_tokens=min_tokens),
        seed=seed,
        stop_token_ids=stop | {EOS} if has_eos else stop,
        eos_token_ids=frozenset({EOS}) if has_eos else frozenset(),
        priority=priority,
        arrival_s=arrival_s,
        deadline_s=deadline_s,
        cache_key=None if tenant is None else tenant.to_bytes(4, "little"),
        leader=leader,
        tenant=on_behalf_of,
        adapter_id=adapter_id,
    )


class SchedulerWorld:
    """Runs a scheduler as the engine's core does, and keeps what it says of each request."""

    def __init__(self, **changes: int | bool) -> None:
        self.config = replace(CONFIG, **changes)  # type: ignore[arg-type]
        self.now_s = 0.0
        self.scheduler = Scheduler(self.config, lambda: self.now_s)
        self.runner = SlotCheckingRunner(self.config)
        self.requests: dict[str, Request] = {}
        self.outputs: dict[str, list[int]] = {}
        self.ends: dict[str, RequestUpdate] = {}
        self.under_way: deque[tuple[BatchPlan, StepResult]] = deque()

    def add(self, *requests: Request) -> Request:
        """Add as one group; returns the first."""
        if not self.config.enable_prefix_caching:
            for request in requests:
                request.cache_key = None
        self.scheduler.add_group(requests)
        for request in requests:
            self.requests[request.id] = request
            self.outputs[request.id] = []
        return requests[0]

    def end(self, id: str, reason: str) -> bool:
        """Abort or fail a request between two steps."""
        if reason == "abort":
            ended = self.scheduler.abort(id)
        else:
            ended = self.scheduler.fail(id, "its adapter was removed")
        self._take(self.scheduler.take_updates())
        self.scheduler.check_integrity()
        return ended

    def plan(self) -> BatchPlan | None:
        """Plan a step and carry it out; its result stays with the device."""
        plan = self.scheduler.schedule()
        if plan is not None:
            self.under_way.append((plan, self.runner.execute(plan)))
        self._take(self.scheduler.take_updates())
        self.scheduler.check_integrity()
        return plan

    def commit(self) -> list[RequestUpdate]:
        """Commit the oldest step under way, if any."""
        if not self.under_way:
            return []
        updates = self.scheduler.commit(*self.under_way.popleft())
        self._take(updates)
        self._take(self.scheduler.take_updates())
        self.scheduler.check_integrity()
        return updates

    def step(self) -> BatchPlan | None:
        """Plan, then commit what is due."""
        plan = self.plan()
        if plan is None or len(self.under_way) > self.config.max_tokens_in_flight:
            self.commit()
        return plan

    def run(self, max_steps: int = 2000) -> None:
        """Step until everything has ended; AssertionError if it does not, or stands still."""
        for _ in range(max_steps):
            if not self.scheduler.has_work():
                break
            num_open = len(self.ends)
            was_idle = not self.under_way
            plan = self.step()
            if was_idle and plan is None:
                assert len(self.ends) > num_open, "nothing under way, and nothing planned"
        assert not self.scheduler.has_work(), f"work is left after {max_steps} steps"
        self.check_at_rest()

    def check_at_rest(self) -> None:
        """Everything has ended, nothing is held, every output is what it would be alone."""
        assert self.ends.keys() == self.requests.keys()
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_owned_blocks) == (0, 0, 0)
        for id, request in self.requests.items():
            self._check_outputs(request, self.outputs[id])

    def _check_outputs(self, request: Request, outputs: list[int]) -> None:
        prompt = request.token_ids[: request.num_prompt_tokens]
        limit = min(
            self.config.max_model_len, self.config.num_blocks * self.config.block_size + 1
        ) - len(prompt)
        if request.params.max_tokens is not None:
            limit = min(limit, request.params.max_tokens)
        expected = reference_outputs(prompt, request.seed, limit)
        reason = "length"
        for i, token_id in enumerate(expected):
            if token_id in request.stop_token_ids and i + 1 >= request.params.min_tokens:
                expected, reason = expected[: i + 1], "stop"
                break
        assert request.token_ids == prompt + outputs
        end = self.ends[request.id]
        if end.finish_reason in ("abort", "deadline", "error"):
            assert outputs == expected[: len(outputs)]
        else:
            assert (outputs, end.finish_reason) == (expected, reason)

    def _take(self, updates: list[RequestUpdate]) -> None:
        for update in updates:
            id = update.request_id
            assert id not in self.ends, f"{id} is heard of after its end"
            self.outputs[id] += update.new_token_ids
            if update.finish_reason is not None:
                self.ends[id] = update

#!/usr/bin/env python
"""What a token budget does to a server under load, on a card that exists as a cost model only.

    PYTHONPATH=worker/src python benchmarks/scheduler_simulation.py --shape 8b --budgets 1024 2048

Drives the real scheduler, one step ahead as on CUDA, through a closed loop of c clients (or
through mixed256, offline), with a clock that advances by what each step would take. Chooses
defaults and shows what a change of the scheduler does to latencies; it is no measurement of a
card, and its figures are not recorded.

A step takes ``max(weights, product_us * tokens) + attention``, launched eagerly no less than
``--eager-ms`` where it has more tokens than are captured. The constants of a shape were fitted
to figures measured on one H100 (decode64, decode256, prefill; vLLM's and ours agree within 10 %).
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
from collections import deque
from dataclasses import dataclass

from octavo.batch import BatchPlan, StepResult
from octavo.config import SchedulerConfig
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Card:
    """What steps of one model cost on one card."""

    weights_ms: float
    """Reading all weights once."""
    product_us: float
    """The products of one token, where arithmetic binds."""
    decode_us: float
    """Sampling and bookkeeping of one sequence."""
    kv_us: float
    """Reading one token's keys and values for a decode."""
    prefill_kv_us: float
    """One new token attending to one token."""
    fixed_ms: float
    """Launches and gaps of a captured step."""

    def step_ms(self, plan: BatchPlan, captured_tokens: int, eager_ms: float) -> float:
        tokens = plan.total_tokens
        ms = max(self.weights_ms, self.product_us * tokens / 1e3) + self.fixed_ms
        for i, (start, count) in enumerate(zip(plan.starts, plan.num_tokens, strict=True)):
            if i < plan.num_decodes:
                ms += (self.decode_us + self.kv_us * start) / 1e3
            else:
                ms += self.prefill_kv_us * count * (start + count / 2) / 1e3
        is_eager = plan.num_decodes < len(plan.rows) and tokens > captured_tokens
        return max(ms, eager_ms) if is_eager else ms


CARDS = {
    # decode64 8 ms, decode256 15 ms at 576 tokens; prefill of 4096-token prompts 40k tokens/s.
    "8b": Card(5.4, 21.5, 3.0, 0.053, 0.0014, 0.6),
    "0.6b": Card(0.5, 1.9, 2.5, 0.042, 0.00065, 1.1),
}
_HOST_MS = 0.4
"""Planning and committing one step."""
_NETWORK_MS = 1.0
"""From a client's last token to its next request in the queue."""


class Simulation:
    """A scheduler, a card, and a clock in milliseconds."""

    def __init__(self, options: argparse.Namespace, budget: int | None, max_num_seqs: int) -> None:
        self._card: Card = CARDS[options.shape]
        self._options = options
        self.now_ms = 0.0
        config = SchedulerConfig(
            max_model_len=8192,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_num_waiting=100_000,
            block_size=16,
            num_blocks=options.kv_tokens // 16,
            enable_prefix_caching=True,
            max_tokens_in_flight=1,
            max_num_batched_tokens_while_decoding=budget,
        )
        self.scheduler = Scheduler(config, lambda: self.now_ms / 1e3)
        self._pending: deque[tuple[BatchPlan, float]] = deque()
        self._device_free_ms = 0.0
        self._number = 0
        self.arrived_ms: dict[str, float] = {}
        self.last_ms: dict[str, float] = {}
        self.first_ms: list[float] = []
        self.gaps_ms: list[float] = []
        self.num_tokens = 0

    def arrive(self, prompt_len: int, output_len: int) -> None:
        """A request enters now."""
        self._number += 1
        draw = random.Random(self._number)
        request = Request(
            str(self._number),
            [draw.randrange(1 << 30) for _ in range(prompt_len)],
            SamplingParams(max_tokens=output_len, ignore_eos=True),
            seed=0,
            stop_token_ids=frozenset(),
            eos_token_ids=frozenset(),
            arrival_s=self.now_ms / 1e3,
            cache_key=b"",
        )
        self.arrived_ms[request.id] = self.now_ms
        self.scheduler.add(request)

    def step(self) -> list[str]:
        """One turn of the engine's loop; returns who has ended."""
        plan = self.scheduler.schedule()
        self.now_ms += _HOST_MS
        if plan is not None:
            start_ms = max(self.now_ms, self._device_free_ms)
            options = self._options
            self._device_free_ms = start_ms + self._card.step_ms(
                plan, options.captured_tokens, options.eager_ms
            )
            self._pending.append((plan, self._device_free_ms))
        if not self._pending or (plan is not None and len(self._pending) <= 1):
            return []
        due, done_ms = self._pending.popleft()
        self.now_ms = max(self.now_ms, done_ms)
        ended = []
        for update in self.scheduler.commit(due, StepResult([1] * sum(due.samples))):
            self._observe(update.request_id)
            if update.finish_reason is not None:
                ended.append(update.request_id)
        return ended

    def _observe(self, request_id: str) -> None:
        self.num_tokens += 1
        last_ms = self.last_ms.get(request_id)
        if last_ms is None:
            self.first_ms.append(self.now_ms - self.arrived_ms[request_id])
        else:
            self.gaps_ms.append(self.now_ms - last_ms)
        self.last_ms[request_id] = self.now_ms


def serve(options: argparse.Namespace, budget: int | None, num_clients: int) -> dict[str, float]:
    """A closed loop, as benchmarks/serving.py drives it."""
    world = Simulation(options, budget, max_num_seqs=256)
    left = num_clients * (options.requests_per_client - 1)
    draw = random.Random(0)
    # Requests start within some milliseconds of each other, as one client machine sends them.
    arrivals = [draw.uniform(0, 0.1 * num_clients) for _ in range(num_clients)]
    heapq.heapify(arrivals)
    while arrivals or world.scheduler.has_work():
        if not world.scheduler.has_work():
            world.now_ms = max(world.now_ms, arrivals[0])
        while arrivals and arrivals[0] <= world.now_ms:
            heapq.heappop(arrivals)
            world.arrive(options.input_len, options.output_len)
        for _ in world.step():
            if left:
                left -= 1
                heapq.heappush(arrivals, world.now_ms + _NETWORK_MS)
    return _figures(world)


def mixed(options: argparse.Namespace, budget: int | None) -> dict[str, float]:
    """mixed256 of benchmarks/workloads.py: all at once."""
    world = Simulation(options, budget, max_num_seqs=256)
    draw = random.Random(0)
    for _ in range(256):
        world.arrive(draw.randint(100, 1024), draw.randint(100, 1024))
    while world.scheduler.has_work():
        world.step()
    return _figures(world)


def _figures(world: Simulation) -> dict[str, float]:
    return {
        "tokens_per_s": round(1e3 * world.num_tokens / world.now_ms),
        "ttft_p50": round(statistics.median(world.first_ms), 1),
        "ttft_p99": round(statistics.quantiles(world.first_ms, n=100)[98], 1),
        "itl_p50": round(statistics.median(world.gaps_ms), 1),
        "itl_p99": round(statistics.quantiles(world.gaps_ms, n=100)[98], 1),
        "itl_max": round(max(world.gaps_ms), 1),
    }


def main() -> None:
    """One JSON line for each budget and load."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=CARDS, default="8b")
    parser.add_argument("--budgets", type=int, nargs="+", default=[1024, 1536, 2048, 4096, 8192])
    parser.add_argument("--clients", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument("--requests-per-client", type=int, default=4)
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--kv-tokens", type=int, default=400_000)
    parser.add_argument("--captured-tokens", type=int, default=2304)
    parser.add_argument("--eager-ms", type=float, default=18.0)
    parser.add_argument("--mixed", action="store_true", help="also mixed256, offline")
    options = parser.parse_args()
    for budget in options.budgets:
        head = {"shape": options.shape, "budget_while_decoding": budget}
        for clients in options.clients:
            line = head | {"clients": clients} | serve(options, budget, clients)
            print(json.dumps(line), flush=True)
        if options.mixed:
            print(json.dumps(head | {"workload": "mixed256"} | mixed(options, budget)), flush=True)


if __name__ == "__main__":
    main()

"""What a step costs the host: schedule, commit, and the message to the server; no device.

Run alone on a quiet core::

    PYTHONPATH=worker/src python benchmarks/scheduler.py

``steady``: every request decodes, none arrives, none ends; each step one in ``block_size`` of
them starts a new block. ``churn``: the same, and requests end and arrive at the rate that
keeps the batch full. ``message_us`` is encoding the step's updates into one frame. ``burst``: the
one step that admits them all, of short prompts, and taking each in before. Times are
processor time of the one thread, in microseconds per step, the best of several rounds: whatever
else the machine does can only add to them.

``--constrained N``: instead, N rows under the schema of the workload json128, through the whole
core, with a vocabulary of the 8B shape's size. Nothing is computed: a step "takes" ``--device-ms``
from its launch or from the end of the one before, and its tokens are drawn evenly from what its
masks allow. ``host_us`` is what the host does between two waits for the device, on the clock;
``step_us`` is from one step's tokens to the next's, as it would be beside such a device;
``main_cpu_us`` and ``cpu_us`` are processor time of the engine's thread and of all threads, which a
busy machine does not stretch. Drawing, which stands for the device, is not counted.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import random
import statistics
import time

import msgspec
import numpy as np
from shapes import SHAPES, synthetic_vocabulary
from workloads import SCHEMA

from octavo.batch import BatchPlan, MaskMemory, StepResult
from octavo.config import SchedulerConfig
from octavo.engine.core import EngineCore
from octavo.engine.messages import RequestSpec, StepReport, frame
from octavo.grammar import StructuredOutputs
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from octavo.structured.compiler import GrammarCompiler
from octavo.structured.translate import translate

GOAL_US = 300.0
"""Host work per step for 256 decoding requests."""


def main() -> None:
    """Print one JSON line per workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-seqs", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--constrained", type=int, metavar="N")
    parser.add_argument("--device-ms", type=float, default=8.0, help="of a constrained step")
    parser.add_argument("--threads", type=int, default=2, help="that make masks")
    options = parser.parse_args()
    gc.freeze()  # as the engine's process does
    if options.constrained:
        _print_constrained(options)
        return
    for look_ahead in (0, 1):
        for name, output_len in (("steady", 100_000), ("churn", 256)):
            rounds = [
                _measure(options.num_seqs, options.steps, output_len, look_ahead)
                for _ in range(options.rounds)
            ]
            schedule_us, commit_us, message_us = min(rounds, key=sum)
            line = {
                "workload": name,
                "num_seqs": options.num_seqs,
                "look_ahead": look_ahead,
                "schedule_us": round(schedule_us, 1),
                "commit_us": round(commit_us, 1),
                "message_us": round(message_us, 1),
                "step_us": round(schedule_us + commit_us + message_us, 1),
                "median_step_us": round(statistics.median(map(sum, rounds)), 1),
                "goal_us": GOAL_US,
            }
            print(json.dumps(line), flush=True)
    add_us, schedule_us = min((_burst(options.num_seqs) for _ in range(options.rounds)), key=sum)
    line = {
        "workload": "burst",
        "num_seqs": options.num_seqs,
        "add_us": round(add_us, 1),
        "schedule_us": round(schedule_us, 1),
    }
    print(json.dumps(line), flush=True)


def _measure(
    num_seqs: int, steps: int, output_len: int, look_ahead: int
) -> tuple[float, float, float]:
    """Mean microseconds of schedule(), of commit() and of the message over ``steps`` steps."""
    rng = random.Random(0)
    scheduler = _scheduler(num_seqs, look_ahead)
    number = 0

    def arrive() -> None:
        nonlocal number
        number += 1
        is_first = number <= num_seqs  # these are mid-way, so that they do not end together
        length = rng.randint(1, output_len) if is_first else output_len
        max_tokens = max(length, 1) if output_len < 1000 else None
        scheduler.add(_request(rng, number, rng.randint(32, 64), max_tokens))

    for _ in range(num_seqs):
        arrive()
    pending: list[BatchPlan] = []
    encoder = msgspec.msgpack.Encoder()
    schedule_s = commit_s = message_s = 0.0
    for step in range(-30, steps):
        started_s = time.thread_time()
        plan = scheduler.schedule()
        scheduled_s = time.thread_time()
        if plan is not None:
            pending.append(plan)
        if plan is not None and len(pending) <= look_ahead:
            continue
        due = pending.pop(0)
        result = StepResult([100 + step] * sum(due.samples))
        ready_s = time.thread_time()
        updates = scheduler.commit(due, result)
        committed_s = time.thread_time()
        frame(encoder, StepReport(updates))
        framed_s = time.thread_time()
        if step >= 0:
            schedule_s += scheduled_s - started_s
            commit_s += committed_s - ready_s
            message_s += framed_s - committed_s
        for update in updates:
            if update.finish_reason is not None:
                arrive()
    return schedule_s / steps * 1e6, commit_s / steps * 1e6, message_s / steps * 1e6


def _burst(num_seqs: int) -> tuple[float, float]:
    """Microseconds of taking in as many requests as there are rows, and of admitting them all."""
    rng = random.Random(0)
    scheduler = _scheduler(num_seqs, look_ahead=1)
    requests = [_request(rng, number, 30, 64) for number in range(num_seqs)]
    gc.collect()
    started_s = time.thread_time()
    for request in requests:
        scheduler.add(request)
    added_s = time.thread_time()
    plan = scheduler.schedule()
    scheduled_s = time.thread_time()
    assert plan is not None
    assert len(plan.admissions) == num_seqs
    return (added_s - started_s) * 1e6, (scheduled_s - added_s) * 1e6


def _print_constrained(options: argparse.Namespace) -> None:
    """A line for each round of ``--steps`` steps: the first begins with nothing compiled."""
    shape = SHAPES["8b"]
    vocab_size, eos = int(str(shape["vocab_size"])), int(str(shape["eos_token_id"]))
    vocabulary = synthetic_vocabulary(vocab_size)
    grammars = GrammarCompiler(lambda: vocabulary, vocab_size, [eos], options.threads)
    device = _StandIn(options.constrained, vocab_size, options.device_ms / 1e3)
    core = EngineCore(_scheduler(options.constrained, 1), device, 1, grammars)
    grammar = translate(StructuredOutputs(json=SCHEMA))
    for number in range(options.rounds):
        for i in range(options.constrained):
            prompt = [1 + (7 * i + j) % 30_000 for j in range(32)]
            params = SamplingParams(max_tokens=options.steps, ignore_eos=True)
            core.submit([RequestSpec(f"{number}-{i}", prompt, params, i, [], [], grammar=grammar)])
        while not device.results:
            core.step()
        device.results.clear()
        while core.has_work:
            core.step()
        hosts, ends, mains, alls = zip(*device.results, strict=True)
        steps = [1e6 * (end - start) for start, end in itertools.pairwise(ends)]
        host = sorted(1e6 * seconds for seconds in hosts)
        line = {
            "workload": "constrained",
            "rows": options.constrained,
            "threads": options.threads,
            "device_ms": options.device_ms,
            "round": number,
            "host_us_mean": round(statistics.mean(host), 1),
            "host_us_median": round(statistics.median(host), 1),
            "host_us_p90": round(host[len(host) * 9 // 10], 1),
            "step_us_mean": round(statistics.mean(steps), 1),
            "main_cpu_us_mean": round(1e6 * statistics.mean(mains), 1),
            "cpu_us_mean": round(1e6 * statistics.mean(alls), 1),
        }
        print(json.dumps(line), flush=True)
        device.results.clear()


class _StandIn:
    """A runner whose device computes nothing, on a clock that leaves out what it stands for."""

    def __init__(self, num_rows: int, vocab_size: int, step_s: float) -> None:
        self._step_s = step_s
        self._free_s = 0.0
        """When the device will have ended the last step launched."""
        self._skipped_s = 0.0
        """Waiting that was not done, less work of the host's that is not its own."""
        self._resumed_s = 0.0
        self._resumed_cpu_s = (time.thread_time(), time.process_time())
        self._rng = np.random.default_rng(0)
        self.results: list[tuple[float, float, float, float]] = []
        """Of each step: the host's seconds since the one before, when it ended, and the processor
        seconds of this thread and of all."""
        self.masks = np.zeros((num_rows, -(-vocab_size // 32)), dtype=np.uint32)

    def execute(self, plan: BatchPlan) -> _StandInStep:
        self._free_s = max(self._free_s, self.now_s()) + self._step_s
        return _StandInStep(self, plan)

    def mask_memory(self) -> MaskMemory:
        return MaskMemory(self.masks.ctypes.data_as(ctypes.c_void_p).value or 0, *self.masks.shape)

    def now_s(self) -> float:
        return time.perf_counter() + self._skipped_s

    def may_draw(self) -> None:
        """The masks of the last step are there."""
        self._free_s = max(self._free_s, self.now_s())

    def wait(self, free_s: float, mask_rows: dict[int, int]) -> list[int]:
        """Go on when the device was free at ``free_s``, with tokens for these rows."""
        now_s = self.now_s()
        host_s, end_s = now_s - self._resumed_s, max(now_s, free_s)
        main_s = time.thread_time() - self._resumed_cpu_s[0]
        all_s = time.process_time() - self._resumed_cpu_s[1]
        tokens = [self._draw(self.masks[mask_rows[i]]) for i in sorted(mask_rows)]
        self._skipped_s = end_s - time.perf_counter()
        self._resumed_s = end_s
        self._resumed_cpu_s = (time.thread_time(), time.process_time())
        self.results.append((host_s, end_s, main_s, all_s))
        return tokens

    def _draw(self, mask: np.ndarray) -> int:
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        return int(allowed[self._rng.integers(len(allowed))])

    def prepare_next(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing is held."""


class _StandInStep:
    """A step of :class:`_StandIn`."""

    def __init__(self, device: _StandIn, plan: BatchPlan) -> None:
        self._device, self._plan = device, plan
        self._mask_rows: dict[int, int] = {}
        self._free_s = 0.0

    def draw(self, mask_rows: dict[int, int]) -> None:
        self._mask_rows = mask_rows
        self._device.may_draw()
        self._free_s = self._device._free_s

    def result(self) -> StepResult:
        drawn = iter(self._device.wait(self._free_s, self._mask_rows))
        drawing = [i for i, draws in enumerate(self._plan.samples) if draws]
        return StepResult([next(drawn) if i in self._mask_rows else 0 for i in drawing])


def _scheduler(num_seqs: int, look_ahead: int) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            max_model_len=200_000,
            max_num_seqs=num_seqs,
            max_num_batched_tokens=8192,
            max_num_waiting=100_000,
            block_size=16,
            num_blocks=num_seqs * 64,
            enable_prefix_caching=True,
            max_tokens_in_flight=look_ahead,
        )
    )


def _request(rng: random.Random, number: int, prompt_len: int, max_tokens: int | None) -> Request:
    return Request(
        f"cmpl-{number:032x}",
        [rng.randrange(32_000) for _ in range(prompt_len)],
        SamplingParams(max_tokens=max_tokens),
        seed=number,
        stop_token_ids=frozenset({2}),
        eos_token_ids=frozenset({2}),
        cache_key=b"tenant",
    )


if __name__ == "__main__":
    main()

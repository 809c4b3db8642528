"""What a step costs the host: schedule, commit, and the message to the server; no device.

Run alone on a quiet core::

    PYTHONPATH=worker/src python benchmarks/scheduler.py

``steady``: every request decodes, none arrives, none ends; each step one in ``block_size`` of
them starts a new block. ``churn``: the same, and requests end and arrive at the rate that
keeps the batch full. ``message_us`` is encoding the step's updates into one frame. ``burst``: the
one step that admits them all, of short prompts, and taking each in before. Times are
processor time of the one thread, in microseconds per step, the best of several rounds: whatever
else the machine does can only add to them.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time

import msgspec

from octavo.batch import BatchPlan, StepResult
from octavo.config import SchedulerConfig
from octavo.engine.messages import StepReport, frame
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler

GOAL_US = 300.0
"""Host work per step for 256 decoding requests."""


def main() -> None:
    """Print one JSON line per workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-seqs", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    gc.freeze()  # as the engine's process does
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

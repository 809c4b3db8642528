"""What metrics, records and log lines cost, per token, per step and per request.

    PYTHONPATH=worker/src python benchmarks/accounting.py [--num-seqs N] [--step-ms MS]

Each part is called alone, many times; the best of several rounds, with the median beside it. The
last line adds up what one engine step of ``num-seqs`` decoding requests costs, as a share of a
step of ``step-ms``: the engine's counters in its process, and in the server's the times of every
token, one request's record, log line and trace-less end for every request that ends.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable

import msgspec

from octavo.engine.messages import StepReport
from octavo.engine.step_pace import StepPace
from octavo.logs import configure_logging, log_event
from octavo.metrics.server_metrics import ServerMetrics
from octavo.outputs import SCHEDULER_STEP_BUCKETS, STEP_TOKEN_BUCKETS, EngineStats, RequestTimings
from octavo.server.requests import RequestLedger, RequestRecord

_ROUNDS = 9
_STATS_PER_S = 10
"""How often the engine's process sends its statistics (octavo.engine.core_process)."""


def best_us(call: Callable[[], object], count: int) -> tuple[float, float]:
    """Least and median microseconds of a call."""
    rounds = []
    for _ in range(_ROUNDS):
        started = time.process_time()
        for _ in range(count):
            call()
        rounds.append((time.process_time() - started) / count * 1e6)
    return min(rounds), statistics.median(rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-seqs", type=int, default=256)
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--tokens-a-request", type=int, default=256)
    options = parser.parse_args()
    metrics = ServerMetrics("m", 4096)
    choice = metrics.start_choice(time.monotonic())
    pace, counts = StepPace(), [0] * 15
    encoder = msgspec.msgpack.Encoder()
    stats = EngineStats(step_token_counts=[1000] * 14, scheduler_step_counts=[1000] * 15)
    ledger = RequestLedger()
    configure_logging("json", "info", io.StringIO())
    logger = logging.getLogger("octavo.server")

    def step() -> None:
        started_s = time.perf_counter()
        time.perf_counter()
        counts[bisect_left(STEP_TOKEN_BUCKETS, 256)] += 1
        counts[bisect_left(SCHEDULER_STEP_BUCKETS, 2e-4)] += 1
        pace.record(256, time.perf_counter() - started_s)
        pace.limit_s(256)

    def request() -> None:
        record = RequestRecord("0123456789abcdef", "/v1/chat/completions")
        number = ledger.enter(record)
        ended = metrics.start_choice(record.arrived_s)
        ended.tokens(1, time.monotonic())
        record.end_choice("stop", RequestTimings(0.1, 0.2, 0.3))
        ended.finished(
            "stop",
            time.monotonic(),
            num_prompt_tokens=100,
            num_cached_tokens=0,
            max_tokens=100,
            timings=record.timings,
        )
        record.end_answered()
        ledger.leave(number)

    def line() -> None:
        log_event(logger, "request", id="0123456789abcdef", status=200, seconds=1.25, key="team")

    figures = {
        "token": best_us(lambda: choice.tokens(1, time.monotonic()), 20_000),
        "step": best_us(step, 20_000),
        "statistics": best_us(lambda: encoder.encode(StepReport([], stats)), 5_000),
        "request": best_us(request, 5_000),
        "log_line": best_us(line, 5_000),
    }
    for name, (least, median) in figures.items():
        print(json.dumps({"figure": name, "us": round(least, 3), "median_us": round(median, 3)}))
    step_us = options.step_ms * 1000
    ends = options.num_seqs / options.tokens_a_request
    for which in (0, 1):
        cost = {name: values[which] for name, values in figures.items()}
        engine_us = cost["step"] + cost["statistics"] * _STATS_PER_S * options.step_ms / 1000
        server_us = options.num_seqs * cost["token"] + ends * (cost["request"] + cost["log_line"])
        print(
            json.dumps(
                {
                    "figure": "share_of_step",
                    "of": ("best", "median")[which],
                    "engine_percent": round(100 * engine_us / step_us, 3),
                    "server_percent_of_one_core": round(100 * server_us / step_us, 3),
                }
            )
        )


if __name__ == "__main__":
    main()

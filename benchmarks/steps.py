#!/usr/bin/env python
"""Where the time of one step goes: single steps of a model, timed and profiled by kernel.

    python benchmarks/steps.py --shape 8b decode:1x576 decode:256x576 prefill:2x4096 --profile 12

A step is KIND:SEQUENCESxTOKENS. ``decode:256x576`` is one token for each of 256 sequences of 576
tokens; ``prefill:2x4096`` computes two whole prompts; ``mixed:64x576+2048`` decodes 64 sequences
and computes one prompt of 2,048 tokens. ``shared:256x4160/4096`` decodes sequences that have their
first 4,096 tokens in common. The engine is built as always and its runner is given the same plan
again and again, so no scheduler and no wall is in the figure.

Prints one JSON line a step (device milliseconds, median and spread; host milliseconds of the call)
and with --profile a table of the kernels that take its time.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from record import Recorder
from shapes import SHAPES, model_folder

from octavo.batch import BatchPlan, RowAdmission
from octavo.config import EngineConfig
from octavo.engine.build import build_engine
from octavo.runner.model_runner import ModelRunner
from octavo.sampling_params import SamplingParams

_STEP = re.compile(r"(decode|prefill|mixed|shared):(\d+)x(\d+)(?:[+/](\d+))?")
_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Step:
    """One step as asked for."""

    name: str
    kind: str
    num_sequences: int
    num_tokens: int
    extra: int
    """Prompt tokens beside decodes, or tokens that all sequences share."""

    @classmethod
    def parse(cls, text: str) -> Step:
        match = _STEP.fullmatch(text)
        if match is None:
            raise argparse.ArgumentTypeError(f"{text!r} is not a step such as decode:64x576")
        kind, sequences, tokens, extra = match.groups()
        return cls(text, kind, int(sequences), int(tokens), int(extra or 0))

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """``(start, computed, shared)`` tokens of each row."""
        for _ in range(self.num_sequences):
            if self.kind == "prefill":
                yield 0, self.num_tokens, 0
            else:
                yield self.num_tokens - 1, 1, self.extra if self.kind == "shared" else 0
        if self.kind == "mixed":
            yield 0, self.extra, 0


def admissions_and_plan(step: Step) -> tuple[BatchPlan, BatchPlan]:
    """The plan that fills the rows, and the step to repeat."""
    generator = torch.Generator().manual_seed(0)
    fill, plan, next_block = BatchPlan(), BatchPlan(), 0
    params = SamplingParams(temperature=0.6, max_tokens=1, ignore_eos=True)
    for row, (start, computed, shared) in enumerate(step.rows()):
        length = start + computed
        common = list(range(shared // _BLOCK_SIZE))
        if row == 0:
            next_block = len(common)
        own = -(-(length + 1) // _BLOCK_SIZE) - len(common)
        blocks = common + list(range(next_block, next_block + own))
        next_block += own
        ids = torch.randint(1000, 30000, (length,), generator=generator).tolist()
        fill.admissions.append(RowAdmission(row, ids, length, 0, params, row, frozenset(), blocks))
        plan.rows.append(row)
        plan.starts.append(start)
        plan.num_tokens.append(computed)
        plan.samples.append(True)
        plan.num_decodes += computed == 1
        if shared:
            plan.shared_lens.append(shared)
    return fill, plan


def time_step(runner: ModelRunner, plan: BatchPlan, repeats: int) -> tuple[list[float], float]:
    """Device milliseconds of each repeat, and host milliseconds of a call."""
    for _ in range(3):
        runner.execute(plan).result()
    events = [
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(repeats + 1)
    ]
    torch.cuda.synchronize()
    events[0].record()
    host_s = 0.0
    handles = []
    for event in events[1:]:
        started = time.perf_counter()
        handles.append(runner.execute(plan))
        host_s += time.perf_counter() - started
        event.record()
    torch.cuda.synchronize()
    for handle in handles:
        handle.result()
    times = [first.elapsed_time(last) for first, last in pairwise(events)]
    return times, 1e3 * host_s / repeats


def profile_step(runner: ModelRunner, plan: BatchPlan, most: int) -> None:
    """Print the kernels of a step by their share of its time."""
    repeats = 5
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            runner.execute(plan).result()
        torch.cuda.synchronize()
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in profile.events():
        if event.device_time > 0:
            spent[event.name][0] += event.device_time
            spent[event.name][1] += 1
    total = sum(entry[0] for entry in spent.values())
    print(f"{'kernel':72}{'calls':>7}{'us each':>9}{'us a step':>11}{'%':>6}")
    for name, (us, calls) in sorted(spent.items(), key=lambda item: -item[1][0])[:most]:
        share = 100 * us / total
        print(
            f"{name[:71]:72}{calls / repeats:7.0f}{us / calls:9.1f}{us / repeats:11.0f}{share:6.1f}"
        )
    print(f"{'all kernels':72}{'':16}{total / repeats:11.0f}\n", flush=True)


def main() -> None:
    arguments = _parse()
    config = EngineConfig(
        model=model_folder(arguments.shape),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=arguments.dtype,
        device="cuda",
        max_model_len=8192,
        max_num_batched_tokens=16384,
        enforce_eager=arguments.eager,
        block_size=_BLOCK_SIZE,
    )
    core = build_engine(config).core
    runner = core._runner
    assert isinstance(runner, ModelRunner)
    for keys, values in runner._kv.layers:
        keys.normal_()
        values.normal_()
    recorder = Recorder("cuda", arguments.results)
    for step in arguments.steps:
        fill, plan = admissions_and_plan(step)
        runner.execute(fill).result()
        times, host_ms = time_step(runner, plan, arguments.repeats)
        tenth = len(times) // 10
        ordered = sorted(times)
        recorder.figure(
            step.name,
            "ms_per_step",
            statistics.median(times),
            "ms",
            spread=[round(ordered[tenth], 4), round(ordered[-1 - tenth], 4)],
            host_ms=round(host_ms, 4),
            model=arguments.shape,
            dtype=arguments.dtype,
        )
        if arguments.profile:
            profile_step(runner, plan, arguments.profile)
        runner.execute(BatchPlan(released_rows=plan.rows)).result()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="+", type=Step.parse)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="no captured steps")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="show N kernels")
    parser.add_argument("--results", help="append to benchmarks/results/NAME.jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    main()

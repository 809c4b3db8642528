#!/usr/bin/env python
"""Hours in minutes: a full cache, aborts, deadlines and preemptions, and nothing may go wrong.

    python benchmarks/soak.py --model demo://smollm2-135m-instruct --minutes 10
    python benchmarks/soak.py --shape 8b --dtype bfloat16 --minutes 8.5 --results h100
    python benchmarks/soak.py --shape 0.6b --batch-invariant --minutes 8.5
    python benchmarks/soak.py --shape 8b --dtype bfloat16 --minutes 8.5 --adapters 16

Keeps more requests open than the KV cache holds, of every kind the engine knows: greedy, drawn,
filtered, penalised, with log probabilities, with n choices, sharing prefixes, of two priorities,
some aborted, some with a deadline; with --adapters, of the base model and of so many LoRA adapters,
which are loaded, replaced and unloaded meanwhile, with slots for a quarter of them and host memory
for half. Ends with status 1 and a list unless

- no block, row or request is lost, while it runs and at its end;
- greedy requests, a sample over the whole time, get the tokens and log probabilities they get when
  run alone: bit for bit with --batch-invariant; else log probabilities within --tolerance, and
  where rounding chose between two tokens, the one taken must be as nearly as likely alone;
- no step takes longer than --stall-limit;
- every request ended, or was refused for a reason that there was;
- the cache was at least 90 % full half of the time (50 with adapters, as not all can run at once),
  and preemptions and aborts did happen;
- memory is flat: what torch and the process hold does not grow after the first quarter;
- with adapters: each answer is that of the generation the request was given, and would not do for
  other weights that its name had; no slot, host entry or generation is left when all are unloaded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import Recorder
from shapes import SHAPES
from soak_load import SoakLoad
from soak_verdict import SoakVerdict

from octavo.outputs import EngineStats


def main() -> int:
    """Run, check, report."""
    options = _parse()
    if not options.adapters:
        return _run(SoakLoad(options, None))
    with tempfile.TemporaryDirectory() as folder:
        return _run(SoakLoad(options, Path(folder)))


def _run(load: SoakLoad) -> int:
    started_s = time.monotonic()
    load.run()
    seconds = time.monotonic() - started_s
    if load.adapters:
        load.adapters.finish()
    verdict = SoakVerdict(load)
    faults = verdict.faults()
    stats = load.core.stats()  # the checks below come on top
    num_checked, num_ties, wrong = verdict.check_tokens()
    num_apart, blind = verdict.check_the_check()
    load.core.check_integrity()
    faults += [*wrong, *blind]
    _report(load, stats, seconds, faults, (num_checked, num_ties, num_apart))
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    load.close()
    return 1 if faults else 0


def _report(
    load: SoakLoad,
    stats: EngineStats,
    seconds: float,
    faults: list[str],
    checks: tuple[int, int, int],
) -> None:
    options, seen = load.options, load.seen
    num_checked, num_ties, num_apart = checks
    adapters: dict[str, Any] = {}
    if load.adapters and stats.adapters:
        adapters = {
            "adapters": options.adapters,
            "slots": stats.adapters.num_slots,
            "changes": load.adapters.changes,
            "fills": stats.adapters.num_fills,
            "slot_evictions": stats.adapters.num_slot_evictions,
            "host_evictions": stats.adapters.num_host_evictions,
            "told_apart": num_apart,
        }
    Recorder(load.info.device, options.results).figure(
        "soak",
        "minutes",
        seconds / 60,
        "min",
        model=options.shape or options.model.rpartition("/")[2],
        dtype=load.info.dtype,
        batch_invariant=options.batch_invariant,
        requests=seen.num_asked,
        ends=seen.ends,
        refusals=seen.refusals,
        tokens=seen.num_tokens,
        steps=len(seen.steps_s),
        preemptions=stats.num_preemptions,
        kv_usage_p50=round(statistics.median(seen.usage), 3),
        step_ms_p50=round(1e3 * statistics.median(seen.steps_s), 2),
        step_ms_max=round(1e3 * max(seen.steps_s), 1),
        **adapters,
        checked=num_checked,
        near_ties=num_ties,
        memory_mib={
            name: [round(one[name] / 2**20) for one in (seen.memory[0], seen.memory[-1])]
            for name in seen.memory[0]
        },
        faults=faults,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder, .gguf file, ORG/NAME or demo://NAME")
    source.add_argument("--shape", choices=SHAPES, help="random weights of a published shape")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--requests", type=int, help="end after so many instead")
    parser.add_argument("--checks", type=int, default=48, help="greedy requests to run alone")
    parser.add_argument("--checked-tokens", type=int, default=128, help="most of each of them")
    parser.add_argument("--tolerance", type=float, default=0.25, help="of log probabilities")
    parser.add_argument("--stall-limit", type=float, default=10.0, help="seconds of one step")
    parser.add_argument("--adapters", type=int, default=0, help="names of LoRA adapters; 0: none")
    parser.add_argument("--max-lora-rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--kv-cache-memory-bytes", type=int)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--results", help="append to benchmarks/results/NAME.jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

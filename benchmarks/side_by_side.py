#!/usr/bin/env python
"""Octavo beside vLLM's CPU build, llama.cpp and transformers, in turn, on SmolLM2-135M's shape.

    python benchmarks/side_by_side.py --rounds 3 --results cpu \\
        --vllm-python ~/vllm/bin/python --llama-python ~/llama/bin/python

Each engine runs in a process of its own, with the Python that has it installed (leave one out to
skip it), alone on the machine, in rounds: A B C, A B C. Figures are output tokens/s for 1 and
for 32 requests of 128 random ids in and 128 out, greedy, no stop at end-of-text, prefix caching
off; and the seconds to construct the engine with its imports done. Medians, every round's value,
and the ratio to Octavo's round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from record import Recorder
from shapes import model_folder
from workloads import make_workload

from octavo.loading.demo_model import DEMO_MODEL, fetch_demo_model

_PEERS = Path(__file__).parent / "peers"


def main() -> None:
    """Run all rounds, then print and record."""
    arguments = _parse()
    engines, job = _engines(arguments), _job()
    values: dict[tuple[str, str], list[float]] = {}
    for number in range(arguments.rounds):
        for engine, command in engines.items():
            print(f"round {number + 1} of {arguments.rounds}: {engine}", file=sys.stderr)
            for figure, value in _run(command, job).items():
                values.setdefault((engine, figure), []).append(value)
    recorder = Recorder("cpu", arguments.results)
    for (engine, figure), runs in values.items():
        unit = "s" if figure == "start" else "tokens/s"
        recorder.figure(
            figure,
            engine,
            statistics.median(runs),
            unit,
            runs=[round(run, 2) for run in runs],
        )


def _run(command: list[str], job: str) -> dict[str, float]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        # vLLM keeps a core for itself unless told that it may have all of them.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    result = subprocess.run(
        command, input=job, capture_output=True, text=True, env=environment, check=False
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith('{"figure"')]
    if result.returncode != 0 or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-3000:]}")
    return {line["figure"]: line["value"] for line in map(json.loads, lines)}


def _job() -> str:
    """What every engine reads: nothing of this folder is on its path, where a module called
    ``kernels`` would be taken for the package of that name."""
    workloads = {name: make_workload(name, 49152).prompts for name in ("cpu1", "cpu32")}
    return json.dumps({"folder": model_folder("135m"), "workloads": workloads})


def _engines(arguments: argparse.Namespace) -> dict[str, list[str]]:
    def script(python: str, name: str, *rest: str) -> list[str]:
        return [python, str(_PEERS / f"{name}_engine.py"), *rest]

    here = sys.executable
    engines = {
        "octavo float32": script(here, "octavo", "dense"),
        "octavo 4-bit (Q4_1)": script(here, "octavo", DEMO_MODEL),
    }
    if arguments.vllm_python:
        for dtype in ("float32", "bfloat16"):
            engines[f"vllm {dtype}"] = script(arguments.vllm_python, "vllm", dtype)
    if arguments.llama_python:
        engines["llama.cpp 4-bit (Q4_1)"] = script(
            arguments.llama_python, "llama_cpp", str(fetch_demo_model()), str(os.cpu_count())
        )
    if arguments.transformers_python:
        engines["transformers float32"] = script(arguments.transformers_python, "transformers")
    return engines


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm-python", help="a Python that has vLLM's CPU build")
    parser.add_argument("--llama-python", help="a Python that has llama-cpp-python")
    parser.add_argument("--transformers-python", help="a Python that has transformers")
    parser.add_argument("--results", help="append to benchmarks/results/NAME.jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    main()

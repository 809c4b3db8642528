#!/usr/bin/env python
"""From process start to the first token over HTTP, cold and warm, and where the time goes.

    python benchmarks/start.py --shape 8b --dtype bfloat16 --device cuda --results h100

Each run starts ``octavo serve`` anew. ``cold``: with an empty folder for compiled kernels, that
is with nothing that an earlier run left; ``warm``: with what the run before left there. Prints
one JSON line a run, with the seconds of each phase as the server tells them (/metrics). Phases
of the engine's process follow each other; compiling runs beside ``weights`` and ends in
``kernels``. Options not listed here are passed to octavo serve.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
import time
import urllib.request

from record import Recorder
from serving import Client, Load, Models, Server
from shapes import SHAPES

_PHASE = re.compile(r'^octavo_startup_phase_seconds\{.*phase="([^"]+)".*\} (\S+)$', re.MULTILINE)
_READY = re.compile(r"^octavo_startup_seconds\{.*\} (\S+)$", re.MULTILINE)


def main() -> None:
    """One cold run, then warm ones."""
    options, extra = _parse()
    recorder = Recorder(options.device, options.results)
    extra += ["--device", options.device]
    if options.dtype:
        extra += ["--dtype", options.dtype]
    with tempfile.TemporaryDirectory() as cache:
        for run in range(1 + options.warm):
            first_s, phases = _run(options, [*extra, "--kernel-cache-dir", cache])
            recorder.figure(
                "start",
                "cold" if run == 0 else "warm",
                first_s,
                "s",
                model=options.shape or options.model.rpartition("/")[2],
                phases=phases,
            )


def _run(options: argparse.Namespace, extra: list[str]) -> tuple[float, dict[str, float]]:
    with Server(options, {}, extra) as server:
        asyncio.run(server.wait_ready())
        client = Client(server.url, Models(["bench"]), 8, 1, options.vocab_size)
        asyncio.run(client.run(Load(), 1, seed=0))
        first_s = time.perf_counter() - server.started
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            text = answer.read().decode()
    phases = {name: round(float(seconds), 3) for name, seconds in _PHASE.findall(text)}
    phases["ready"] = round(float(_READY.findall(text)[0]), 3)
    return first_s, phases


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder, .gguf file, ORG/NAME or demo://NAME")
    source.add_argument("--shape", choices=SHAPES, help="random weights of a published shape")
    parser.add_argument("--warm", type=int, default=2, help="runs after the cold one (default 2)")
    parser.add_argument("--vocab-size", type=int, default=49152, help="ids are drawn below it")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype")
    parser.add_argument("--results", help="append to benchmarks/results/NAME.jsonl")
    return parser.parse_known_args()


if __name__ == "__main__":
    main()

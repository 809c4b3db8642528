#!/usr/bin/env python
"""What LoRA adapters cost: throughput with many, the first token of a cold one, steps under loads.

    python benchmarks/lora.py --shape 8b --dtype bfloat16 --max-model-len 8192 --results h100

Prints one JSON line a figure, as offline.py does: throughput of the workload mixed256 (256 requests
at once, prompt and output uniform 100-1024, T=0.6) and the median step of one, of 64 and of 256
decoding requests, of

- ``base``: an engine without LoRA;
- ``lora-unused``: adapters enabled, none used;
- ``lora8``, ``lora64``: 8 and 64 adapters of ``--rank`` on all seven projections, round robin, as
  many as there are slots;
- ``lora8-of-64``: 8 such adapters where there are 64 slots;

the last four with their ratio to ``base``, measured in the same run; and

- ``lora-cold``: the first token of a 128-token prompt with an adapter that is in host memory
  and not on the device, beside one that is on it;
- ``lora-load``: the longest step of 64 decoding requests while other adapters are read from files
  and copied to the device for a request of one token each, beside the longest where such requests
  come for adapters that are there.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from random_adapters import make_random_adapters
from record import Recorder
from shapes import SHAPES, model_folder
from workloads import Workload, make_workload

from octavo import LLM, LoRARequest, SamplingParams
from octavo.engine.core_process import SWITCH_INTERVAL_S
from octavo.engine.messages import AdapterOpened
from octavo.engine.request_options import RequestOptions
from octavo.lora.adapter_source import AdapterSource
from octavo.request import AdapterGeneration

PARTS = ("base", "lora-unused", "lora8", "lora64", "lora8-of-64", "lora-cold", "lora-load")
_STEPS = 100
"""Of a measurement of steps."""
_FIRST_LOADED = 1_000_000
"""The number of the first adapter that is loaded beside others; not one of LLM's."""


class Bench:
    """Engines one after another, and the figures they give."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._arguments = arguments
        self._model = model_folder(arguments.shape)
        self._options: dict[str, Any] = {"load_format": "dummy", "skip_tokenizer_init": True}
        for name in ("dtype", "device", "max_model_len", "max_num_seqs"):
            if (value := getattr(arguments, name)) is not None:
                self._options[name] = value
        config = json.loads((Path(self._model) / "config.json").read_text())
        self._folders = make_random_adapters(folder, config, 65, arguments.rank)
        self._recorder: Recorder | None = None
        self._base: dict[str, float] = {}

    def open(self, **options: Any) -> LLM:
        """An engine, its graphs captured, and looked after as a server's is: its objects left out
        of collections of garbage, of which a full one takes 0.1 s, and threads that read adapters
        made to give way to steps."""
        llm = LLM(self._model, **self._options, **options)
        llm.prepare()
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        if self._recorder is None:
            self._recorder = Recorder(llm.info.device, self._arguments.results)
        return llm

    def requests(self, count: int) -> list[LoRARequest]:
        """The first adapters."""
        return [LoRARequest(f"a{i}", self._folders[i]) for i in range(count)]

    def figure(self, workload: str, name: str, value: float, unit: str, **more: Any) -> None:
        """Record one number."""
        assert self._recorder is not None
        details = {"model": self._arguments.shape, "rank": self._arguments.rank, **more}
        if self._arguments.max_rank is not None:
            details["max_rank"] = self._arguments.max_rank
        if self._arguments.scale != 1.0:
            details["scale"] = self._arguments.scale
        self._recorder.figure(workload, name, value, unit, **details)

    def costs(self, llm: LLM, name: str, adapters: Sequence[LoRARequest]) -> None:
        """Output tokens a second of mixed256, and milliseconds of a step."""
        generations = [llm.load_lora(request) for request in adapters]
        workload = make_workload("mixed256", llm.info.vocab_size, self._arguments.scale)
        chosen = (
            [adapters[i % len(adapters)] for i in range(len(workload.prompts))]
            if adapters
            else None
        )
        run_all(llm, workload, chosen, max_output=8)  # compiles and captures what is missing
        rates = [run_all(llm, workload, chosen) for _ in range(self._arguments.repeats)]
        rate = statistics.median(rates)
        runs = [round(rate, 1) for rate in rates]
        self.figure(name, "output_tokens_per_s", rate, "tokens/s", runs=runs)
        self._compare(name, "output_tokens_per_s", rate)
        for workload_name in ("single", "decode64", "decode256"):
            step_ms = statistics.median(self._steps(llm, workload_name, generations))
            self.figure(name, f"step_ms_{workload_name}", step_ms, "ms")
            self._compare(name, f"step_ms_{workload_name}", step_ms)

    def _compare(self, name: str, figure: str, value: float) -> None:
        if name == "base":
            self._base[figure] = value
        elif figure in self._base:
            self.figure(name, f"{figure}_to_base", value / self._base[figure], "ratio")

    def cold(self, llm: LLM) -> None:
        """First tokens with an adapter on the device, and with one that must be copied first."""
        (prompt,) = make_workload("single", llm.info.vocab_size).prompts
        num_slots = llm.stats().adapters.num_slots  # type: ignore[union-attr]
        adapters = self.requests(num_slots + 1)
        for request in adapters:
            llm.load_lora(request)
        warm, cold = list[float](), list[float]()
        for number in range(6 * len(adapters)):
            # One more than there are slots, in turn: the next one is never there.
            request = adapters[number % len(adapters)]
            for times in (cold, warm):
                llm.reset_prefix_cache()
                times.append(1e3 * first_token_s(llm, prompt, request))
        skip = len(adapters)
        warm, cold = warm[skip:], cold[skip:]
        self.figure("lora-cold", "warm_ttft_ms", statistics.median(warm), "ms")
        self.figure("lora-cold", "cold_ttft_ms", statistics.median(cold), "ms", worst=max(cold))
        more = statistics.median(cold) - statistics.median(warm)
        self.figure("lora-cold", "cold_above_warm_ms", more, "ms")

    def load(self, llm: LLM) -> None:
        """The longest steps of 64 decoding requests, with loads from disk and copies beside; after
        a round in which the steps that such requests make are captured."""
        generations = [llm.load_lora(request) for request in self.requests(4)]
        self._steps(llm, "decode64", generations, num_touches=4)
        for name, loads in (("without", False), ("with", True)):
            steps = sorted(self._steps(llm, "decode64", generations, 24, loads))
            p99 = steps[int(0.99 * (len(steps) - 1))]
            self.figure(
                "lora-load", f"max_step_ms_{name}_loads", steps[-1], "ms", p99=round(p99, 3)
            )
            self.figure("lora-load", f"median_step_ms_{name}_loads", statistics.median(steps), "ms")

    def _steps(
        self,
        llm: LLM,
        workload_name: str,
        adapters: Sequence[AdapterGeneration],
        num_touches: int = 0,
        loads: bool = False,
    ) -> list[float]:
        """Milliseconds of each step while everyone decodes; meanwhile requests of one token come,
        for adapters that are loaded and copied to the device first, or for one that is there."""
        workload = make_workload(workload_name, llm.info.vocab_size, self._arguments.scale)
        core, intake = llm._engine.core, llm._intake
        num_steps = max(_STEPS, 16 * num_touches)
        params = SamplingParams(
            temperature=0.6, max_tokens=num_steps, ignore_eos=True, detokenize=False
        )
        one = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
        llm.reset_prefix_cache()
        for number, prompt in enumerate(workload.prompts):
            adapter = adapters[number % len(adapters)] if adapters else None
            options = RequestOptions(adapter=adapter)
            core.submit(intake.prepare(f"step-{number}", prompt[:128], params, options))
        times: list[float] = []
        opened: list[int] = []
        num_touched = 0

        def touch(adapter: AdapterGeneration) -> None:
            nonlocal num_touched
            num_touched += 1
            prompt, options = workload.prompts[0][:16], RequestOptions(adapter=adapter)
            core.submit(intake.prepare(f"touch-{num_touched}", prompt, one, options))

        before = time.perf_counter()
        while core.has_work or num_touched < len(opened):
            updates = core.step()
            now = time.perf_counter()
            for event in core.take_adapter_events():
                assert isinstance(event, AdapterOpened), event
                touch(AdapterGeneration(event.adapter_id, event.digest))
            if len(updates) >= len(workload.prompts):
                times.append(1e3 * (now - before))
                if len(times) % 12 == 0 and max(len(opened), num_touched) < num_touches:
                    if loads:
                        opened.append(_FIRST_LOADED + len(opened))
                        source = AdapterSource(self._folders[8 + len(opened)])
                        core.open_adapter(opened[-1], source)
                    else:
                        touch(adapters[0])
            before = now
        for adapter_id in opened:
            core.close_adapter(adapter_id)
        return times[10:]


def run_all(
    llm: LLM,
    workload: Workload,
    adapters: list[LoRARequest] | None,
    max_output: int | None = None,
) -> float:
    """Output tokens a second."""
    llm.reset_prefix_cache()
    lengths = [min(length, max_output or length) for length in workload.output_lens]
    params = [
        SamplingParams(
            temperature=workload.temperature, max_tokens=length, ignore_eos=True, detokenize=False
        )
        for length in lengths
    ]
    prompts = [{"prompt_token_ids": prompt} for prompt in workload.prompts]
    started = time.perf_counter()
    llm.generate(prompts, params, lora_request=adapters, use_tqdm=False)
    return sum(lengths) / (time.perf_counter() - started)


def first_token_s(llm: LLM, prompt: list[int], request: LoRARequest) -> float:
    """From asking to the end of a request for one token."""
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
    started = time.perf_counter()
    llm.generate({"prompt_token_ids": prompt}, params, lora_request=request, use_tqdm=False)
    return time.perf_counter() - started


def run_on(bench: Bench, measures: Sequence[Callable[[LLM], None]], **options: Any) -> None:
    """Build an engine, measure, and give its memory back."""
    if not measures:
        return
    llm = bench.open(**options)
    for measure in measures:
        measure(llm)
    llm.close()
    del llm
    gc.unfreeze()
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    """The parts asked for, each engine built once."""
    arguments = _parse()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        measures: dict[str, Callable[[LLM], None]] = {
            "base": lambda llm: bench.costs(llm, "base", []),
            "lora-unused": lambda llm: bench.costs(llm, "lora-unused", []),
            "lora8": lambda llm: bench.costs(llm, "lora8", bench.requests(8)),
            "lora-cold": bench.cold,
            "lora-load": bench.load,
            "lora64": lambda llm: bench.costs(llm, "lora64", bench.requests(64)),
            "lora8-of-64": lambda llm: bench.costs(llm, "lora8-of-64", bench.requests(8)),
        }

        def chosen(*names: str) -> list[Callable[[LLM], None]]:
            return [measures[name] for name in names if name in arguments.parts]

        max_rank = arguments.max_rank or arguments.rank
        lora = {"enable_lora": True, "max_lora_rank": max_rank}
        run_on(bench, chosen("base"))
        small = chosen("lora-unused", "lora8", "lora-cold", "lora-load")
        run_on(bench, small, max_loras=8, max_cpu_loras=16, **lora)
        large = chosen("lora64", "lora8-of-64")
        run_on(bench, large, max_loras=64, max_cpu_loras=64, **lora)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rank", type=int, default=16, help="of each adapter (default 16)")
    parser.add_argument("--max-rank", type=int, help="that slots have room for (default: the rank)")
    parser.add_argument("--repeats", type=int, default=1, help="runs a figure (default 1)")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink counts, for a quick look")
    parser.add_argument("--results", help="append to benchmarks/results/NAME.jsonl")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--max-num-seqs", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()

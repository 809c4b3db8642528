#!/usr/bin/env python
"""Offline workloads on any device: throughput, latency of one sequence, prefill, prefix reuse.

    python benchmarks/offline.py --model demo://smollm2-135m-instruct --workloads cpu1 cpu32
    python benchmarks/offline.py --shape 8b --dtype bfloat16 --workloads mixed256 decode64

Prints one JSON line a figure; --results NAME also appends them, with the command, the commit,
the device and the versions, to benchmarks/results/NAME.jsonl. Each figure is the median of
--repeats runs after a warm-up; every run's value is kept beside it as the spread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from record import Recorder
from shapes import SHAPES, model_folder, synthetic_vocabulary
from workloads import NAMES, Workload, make_workload

from octavo import LLM, SamplingParams
from octavo.grammar import StructuredOutputs

_ENGINE_OPTIONS = (
    "dtype",
    "device",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_num_batched_tokens_while_decoding",
    "batch_invariant",
)


def main() -> None:
    """Run the workloads asked for, in order, on one engine."""
    arguments = _parse()
    options: dict[str, Any] = {
        name: value for name in _ENGINE_OPTIONS if (value := getattr(arguments, name)) is not None
    }
    if arguments.shape:
        options |= {"load_format": "dummy", "skip_tokenizer_init": True}
    model = model_folder(arguments.shape) if arguments.shape else arguments.model
    started = time.perf_counter()
    needs_vocabulary = arguments.shape and any("json" in name for name in arguments.workloads)
    if needs_vocabulary:
        options["vocabulary"] = synthetic_vocabulary(
            int(str(SHAPES[arguments.shape]["vocab_size"]))
        )
    llm = LLM(model, **options)
    recorder = Recorder(llm.info.device, arguments.results)
    details = {
        "model": arguments.shape or arguments.model,
        "dtype": llm.info.dtype,
        "kernels": llm.info.kernels,
    }
    if arguments.batch_invariant:
        details["batch_invariant"] = True
    if arguments.scale != 1.0:
        details["scale"] = arguments.scale
    recorder.figure("start", "seconds", time.perf_counter() - started, "s", **details)
    for name in arguments.workloads:
        workload = make_workload(name, llm.info.vocab_size, arguments.scale)
        _measure(llm, workload, recorder, arguments.repeats, details)


def _measure(
    llm: LLM, workload: Workload, recorder: Recorder, repeats: int, details: dict[str, Any]
) -> None:
    _warm_up(llm, workload)
    runs = [_RUN[workload.figure](llm, workload) for _ in range(repeats)]
    for name, unit in _UNITS[workload.figure].items():
        values = [run[name] for run in runs]
        recorder.figure(
            workload.name,
            name,
            statistics.median(values),
            unit,
            runs=[round(value, 4) for value in values],
            **details,
        )


def _warm_up(llm: LLM, workload: Workload) -> None:
    """What a server has done before its first busy minute: capture the usual steps, and once run
    what is asked for; of a long workload two requests, with the first steps of the others."""
    llm.prepare()
    if workload.figure != "output_tokens_per_s":
        _RUN[workload.figure](llm, workload)
        return
    few = min(len(workload.prompts), 2)
    _generate(llm, workload.prompts[:few], [2] * few, workload.temperature)
    if workload.schema is not None:
        _generate(llm, workload.prompts[:few], [40] * few, workload.temperature, workload.schema)


def _generate(
    llm: LLM,
    prompts: list[list[int]],
    output_lens: list[int],
    temperature: float,
    schema: dict[str, Any] | None = None,
    wishes: Sequence[Mapping[str, Any]] = (),
) -> tuple[float, int]:
    """Run one batch; returns its seconds and the tokens it produced. ``wishes``: what the first
    requests want beside."""
    params = [
        SamplingParams(
            temperature=temperature,
            max_tokens=length,
            ignore_eos=True,
            detokenize=False,
            structured_outputs=None if schema is None else StructuredOutputs(json=schema),
            **(wishes[index] if index < len(wishes) else {}),
        )
        for index, length in enumerate(output_lens)
    ]
    started = time.perf_counter()
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False
    )
    seconds = time.perf_counter() - started
    produced = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert produced == sum(output_lens), f"{produced} tokens instead of {sum(output_lens)}"
    return seconds, produced


def _throughput(llm: LLM, workload: Workload) -> dict[str, float]:
    llm.reset_prefix_cache()
    seconds, produced = _generate(llm, workload.prompts, workload.output_lens, workload.temperature)
    return {"output_tokens_per_s": produced / seconds}


def _prefill(llm: LLM, workload: Workload) -> dict[str, float]:
    llm.reset_prefix_cache()
    seconds, _ = _generate(llm, workload.prompts, workload.output_lens, 0.0)
    return {"prompt_tokens_per_s": sum(map(len, workload.prompts)) / seconds}


def _prefix(llm: LLM, workload: Workload) -> dict[str, float]:
    llm.reset_prefix_cache()
    _generate(llm, [workload.warm_prefix], [1], 0.0)
    seconds, _ = _generate(llm, workload.prompts, workload.output_lens, 0.0)
    return {"seconds": seconds}


def _decode(llm: LLM, workload: Workload) -> dict[str, float]:
    """Steps alone: the run with all tokens less the run with one, over the steps between."""
    llm.reset_prefix_cache()
    short, _ = _generate(llm, workload.prompts, [1] * len(workload.prompts), 0.0)
    llm.reset_prefix_cache()
    whole, _ = _generate(llm, workload.prompts, workload.output_lens, 0.0)
    return {"ms_per_step": 1e3 * (whole - short) / (workload.output_lens[0] - 1)}


def _single(llm: LLM, workload: Workload) -> dict[str, float]:
    llm.reset_prefix_cache()
    first, _ = _generate(llm, workload.prompts, [1], 0.0)
    llm.reset_prefix_cache()
    whole, _ = _generate(llm, workload.prompts, workload.output_lens, 0.0)
    steps = workload.output_lens[0] - 1
    return {"ttft_ms": 1e3 * first, "tpot_ms": 1e3 * (whole - first) / steps}


def _constrained(llm: LLM, workload: Workload) -> dict[str, float]:
    """The same requests free and under a schema, one after the other."""
    rates = []
    for schema in (None, workload.schema):
        llm.reset_prefix_cache()
        seconds, produced = _generate(
            llm, workload.prompts, workload.output_lens, workload.temperature, schema
        )
        rates.append(produced / seconds)
    return {"free": rates[0], "constrained": rates[1], "ratio": rates[1] / rates[0]}


_WISHES: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": 5},
    "penalty": {"presence_penalty": 0.5},
}


def _wishes(llm: LLM, workload: Workload) -> dict[str, float]:
    """The same requests without, and with something beside that one or that all of them want."""

    def rate(wishes: Sequence[Mapping[str, Any]]) -> float:
        llm.reset_prefix_cache()
        seconds, produced = _generate(
            llm, workload.prompts, workload.output_lens, workload.temperature, wishes=wishes
        )
        return produced / seconds

    rates = {"none": rate([])}
    for name, wish in _WISHES.items():
        rates[f"one_{name}"] = rate([wish])
        rates[f"all_{name}"] = rate([wish] * len(workload.prompts))
    return rates


_RUN: dict[str, Callable[[LLM, Workload], dict[str, float]]] = {
    "output_tokens_per_s": _throughput,
    "prompt_tokens_per_s": _prefill,
    "seconds": _prefix,
    "ms_per_step": _decode,
    "single": _single,
    "constrained": _constrained,
    "wishes": _wishes,
}
_UNITS = {
    "output_tokens_per_s": {"output_tokens_per_s": "tokens/s"},
    "prompt_tokens_per_s": {"prompt_tokens_per_s": "tokens/s"},
    "seconds": {"seconds": "s"},
    "ms_per_step": {"ms_per_step": "ms"},
    "single": {"ttft_ms": "ms", "tpot_ms": "ms"},
    "constrained": {"free": "tokens/s", "constrained": "tokens/s", "ratio": ""},
    "wishes": dict.fromkeys(
        ["none", *(f"{who}_{name}" for name in _WISHES for who in ("one", "all"))], "tokens/s"
    ),
}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder, .gguf file, ORG/NAME or demo://NAME")
    source.add_argument("--shape", choices=SHAPES, help="random weights of a published shape")
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=["cpu1", "cpu32"])
    parser.add_argument("--repeats", type=int, default=3, help="runs a figure (default 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink counts, for a quick look")
    parser.add_argument("--results", help="append to benchmarks/results/NAME.jsonl")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--max-num-batched-tokens-while-decoding", type=int)
    parser.add_argument("--batch-invariant", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()

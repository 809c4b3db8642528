"""The whole engine on the GPU draws the CPU reference's tokens, captured and eager."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.batch import BatchPlan, Runner, StepHandle
from octavo.kernels.triton import TritonKernels
from octavo.runner.cuda_graphs import StepGraphs
from octavo.sampling_params import SamplingParams
from tiny_engine import TinyEngine
from tiny_models import FAMILIES

_DRAW = random.Random(0)
PROMPTS = [[_DRAW.randrange(256) for _ in range(_DRAW.randrange(1, 90))] for _ in range(9)]
PARAMS = {
    "greedy": SamplingParams(temperature=0, max_tokens=20),
    "random": SamplingParams(temperature=1.0, max_tokens=20),
    "filtered": SamplingParams(temperature=1.0, max_tokens=20, top_p=0.9, top_k=40),
    "penalised": SamplingParams(temperature=1.0, max_tokens=20, presence_penalty=1.0),
}
WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "eager-one-step-ahead": {"look_ahead": 1},
    "captured": {"graphs": StepGraphs},
    "captured-one-step-ahead": {"graphs": StepGraphs, "look_ahead": 1, "max_num_seqs": 7},
    "captured-preempted": {"graphs": StepGraphs, "look_ahead": 1, "num_blocks": 9},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gpu_draws_the_cpus_tokens(family: str, tmp_path: Path) -> None:
    cpu = TinyEngine(tmp_path / "cpu", family, head_dim=16)
    gpu = TinyEngine(
        tmp_path / "gpu", family, TritonKernels(torch.device("cuda")), "cuda", head_dim=16
    )
    # How a token is drawn does not depend on the family, so one of them shows every way.
    for name in PARAMS if family == "llama" else ("greedy", "filtered"):
        params = PARAMS[name]
        expected = cpu.generate(PROMPTS, params, cpu.core(max_num_seqs=1))
        for way, options in WAYS.items():
            drawn = gpu.generate(PROMPTS, params, gpu.core(**options))
            assert drawn == expected, f"{family}, {name}, {way}"


@contextmanager
def no_waiting() -> Iterator[None]:
    """Any wait for the device is an error inside."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("graphs", [None, StepGraphs], ids=["eager", "captured"])
def test_launching_a_step_never_waits_for_the_device(
    tmp_path: Path, graphs: type[StepGraphs] | None
) -> None:
    """Prompts in chunks beside decodes too, where some rows draw and others do not: a wait there
    would keep the host from planning the next step meanwhile."""

    def watched(runner: Runner) -> Runner:
        execute = runner.execute

        def launch(plan: BatchPlan) -> StepHandle:
            with no_waiting():
                return execute(plan)

        runner.execute = launch  # type: ignore[method-assign]
        return runner

    engine = TinyEngine(tmp_path, "llama", TritonKernels(torch.device("cuda")), "cuda", head_dim=16)
    for params in PARAMS.values():
        core = engine.core(
            graphs=graphs,
            look_ahead=1,
            max_num_seqs=7,
            max_num_batched_tokens=50,
            wrap_runner=watched,
        )
        engine.generate(PROMPTS, params, core)


def test_a_request_draws_the_same_in_any_batch_in_bfloat16(tmp_path: Path) -> None:
    engine = TinyEngine(
        tmp_path, "llama", TritonKernels(torch.device("cuda")), "cuda", torch.bfloat16, head_dim=16
    )
    # Products of another batch size may round otherwise, so only captured and eager runs of
    # the same schedule are held to be equal bit for bit.
    for params in PARAMS.values():
        eager = engine.generate(PROMPTS, params, engine.core(max_num_seqs=1))
        captured = engine.generate(PROMPTS, params, engine.core(max_num_seqs=1, graphs=StepGraphs))
        assert eager == captured

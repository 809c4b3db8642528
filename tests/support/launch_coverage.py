"""Prints programs that steps launch and that nothing compiled ahead; run as a program.

Triton's launches are replaced by notes of what each would be compiled for: first those that
compiling ahead asks for, of a model cut short, then those of steps of many shapes of the whole one,
captured and not, with draws of every kind.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from octavo.config import EngineConfig
from octavo.engine.compile_ahead import absent_runner, find_launches
from octavo.engine.compiler_process import CompileTask
from octavo.kernels.adapters import AdapterUse
from octavo.models.family import DecoderFamily
from octavo.runner.step_shapes import StepShape
from octavo.runner.trial_steps import trial_plan
from octavo.sampling.sampler import DrawKind
from octavo.sampling_params import SamplingParams
from tiny_models import tiny_config

_noted: set[tuple[str, str]] = set()
_FILTER = {"top_k": 5, "top_p": 0.9}
_WISHES = [
    SamplingParams(temperature=temperature, **more, **wish)
    for temperature, more in [(0.0, {}), (1.0, {}), (1.0, _FILTER)]
    for wish in [{}, {"logprobs": 2}, {"presence_penalty": 1.0}, {"logit_bias": {7: 1.0}}]
]
"""Draws that a kernel of its own may serve each."""


def _note(self: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
    # As JITFunction.run finds a compiled program again.
    constants |= {"debug": False, "instrumentation_mode": ""}
    *_, binder = self.device_caches[0]
    _, specialization, options = binder(*args, **constants)
    _noted.add((self.__name__, f"{specialization} {options}"))
    return SimpleNamespace()


def _launch_whole(task: CompileTask) -> None:
    abridged = DecoderFamily.abridged
    DecoderFamily.abridged = lambda self: self
    runner = absent_runner(task)
    graphs = runner._graphs
    DecoderFamily.abridged = abridged
    assert graphs is not None
    for params in _WISHES:
        for lengths in ([1], [1] * 40, [1, 1, 580], [300, 270]):
            runner.execute_uncaptured(trial_plan(lengths, params))
    uses = graphs.shapes._adapters
    with torch.inference_mode():
        for shape in graphs.shapes.by_use():
            graphs.run_padding(shape)
        for decodes, prefills, tokens in [
            (0, 1, 2),
            (0, 1, 1),
            (0, 3, 50),
            (5, 2, 70),
            (40, 9, 600),
        ]:
            for kind in (DrawKind.GREEDY, DrawKind.FILTERED):
                for use in [AdapterUse.NONE, *uses]:
                    shape = StepShape(decodes, prefills, tokens, kind, adapters=use)
                    graphs.run_padding(shape)


def main() -> None:
    hf_config = tiny_config(
        "qwen3",
        hidden_size=128,
        intermediate_size=192,
        head_dim=64,
        vocab_size=320,
        num_hidden_layers=5,
    )
    JITFunction.run = _note
    for max_loras in (8, 64):
        _noted.clear()
        config = EngineConfig(
            model="m",
            enable_lora=True,
            max_loras=max_loras,
            max_num_seqs=48,
            max_num_batched_tokens=600,
        )
        task = CompileTask(config, hf_config, "bfloat16", max_model_len=640, capability=(9, 0))
        num_ahead = find_launches(task, lambda name, call: call())
        ahead = set(_noted)
        _launch_whole(task)
        for late in sorted(_noted - ahead):
            print(*late)
        print(f"{num_ahead} programs ahead, {len(_noted)} with {max_loras} slots")


if __name__ == "__main__":
    main()

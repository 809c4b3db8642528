"""Prints programs that steps launch and that nothing compiled ahead; run as a program.

Triton's launches are replaced by notes of which program with which constants it would have been:
first those that compiling ahead asks for, then those of steps of many shapes.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from octavo.config import EngineConfig
from octavo.engine.compile_ahead import absent_runner, find_launches
from octavo.engine.compiler_process import CompileTask
from octavo.runner.step_shapes import StepShape
from octavo.sampling.sampler import DrawKind
from tiny_models import tiny_config

_noted: set[tuple[str, str]] = set()


def _note(self: Any, *_: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
    _noted.add((self.__name__, repr(sorted(constants.items(), key=repr))))
    return SimpleNamespace()


def main() -> None:
    hf_config = tiny_config(
        "qwen3", hidden_size=128, intermediate_size=192, head_dim=64, vocab_size=320
    )
    limits = {"max_num_seqs": 48, "max_num_batched_tokens": 600}
    config = EngineConfig(model="m", enable_lora=True, **limits)  # type: ignore[arg-type]
    task = CompileTask(config, hf_config, "bfloat16", max_model_len=640, capability=(9, 0))
    JITFunction.run = _note
    find_launches(task, lambda name, call: call())
    ahead = set(_noted)
    graphs = absent_runner(task)._graphs
    assert graphs is not None
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
                graphs.run_padding(StepShape(decodes, prefills, tokens, kind))
    for late in sorted(_noted - ahead):
        print(*late)
    print(f"{len(ahead)} programs ahead")


if __name__ == "__main__":
    main()

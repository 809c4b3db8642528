"""Compiles a model's Triton programs side by side, on a machine with or without a GPU.

The model is built of tensors without memory (torch's meta device) and steps are run on them:
what would be launched is recorded instead, and compiled in as many processes as there are cores,
into Triton's cache, where the engine finds it. So nothing here lists kernels: what is compiled
is what serving launches.

A starting engine runs this as a program (:mod:`octavo.engine.compiler_process`);
``octavo warm-kernels`` calls it while an image or a volume is made.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from octavo.config import EngineConfig
from octavo.engine.build import (
    DTYPES,
    adapter_stack,
    make_runner,
    resolve_dtype,
    resolve_max_model_len,
    step_limits,
)
from octavo.engine.compiler_process import (
    TASK_VARIABLE,
    CompileTask,
    marker_of,
    use_kernel_cache,
)
from octavo.errors import ConfigError
from octavo.kernels.interface import WeightPart
from octavo.kernels.select import select_absent_kernels
from octavo.loading.checkpoint import open_checkpoint
from octavo.logs import configure_logging
from octavo.models import registry
from octavo.runner.cgroup import num_usable_cpus
from octavo.version import __version__

_log = logging.getLogger(__name__)
_MAX_PROCESSES = 16
_META = torch.device("meta")
_CUDA = torch.device("cuda")


def compile_ahead(task: CompileTask, num_processes: int | None = None) -> int:
    """Compile every program of a task; returns how many there are."""
    started_s = time.perf_counter()
    use_kernel_cache(task.config)
    launches = _record(task)
    recorded_s = time.perf_counter() - started_s
    taken = _compile_in_processes(launches, num_processes or min(num_usable_cpus(), _MAX_PROCESSES))
    marker = marker_of(task)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"programs": len(launches), "octavo": __version__}))
    _log.info(
        "Compiled %d programs in %.1f s, of which finding them %.1f s; the longest: %s",
        len(launches),
        time.perf_counter() - started_s,
        recorded_s,
        ", ".join(f"{name} {seconds:.1f} s" for seconds, name in sorted(taken)[-3:]),
    )
    return len(launches)


def warm_kernels(config: EngineConfig, capability: tuple[int, int]) -> tuple[int, Path]:
    """Compile for a model and a card that need not be here; returns how many, and where to.

    Of the model only its configuration is read (and fetched).
    """
    use_kernel_cache(config)
    checkpoint = open_checkpoint(
        config.model,
        revision=config.revision,
        download_dir=config.download_dir,
        load_format="dummy",
        hf_overrides=config.hf_overrides,
        needs_tokenizer=False,
    )
    task = CompileTask(
        config,
        checkpoint.hf_config,
        str(resolve_dtype(config, checkpoint, _CUDA)).removeprefix("torch."),
        resolve_max_model_len(config, registry.resolve(checkpoint.hf_config)),
        capability,
    )
    return compile_ahead(task), marker_of(task).parent


def capability_of(text: str) -> tuple[int, int]:
    """``9.0`` as (9, 0); raises ConfigError for what is no compute capability."""
    major, dot, minor = text.partition(".")
    if not (major.isdigit() and (minor.isdigit() or not dot)):
        raise ConfigError(
            f"--compute-capability is {text!r}; write it as 9.0 (H100), 8.9 (L4) or 8.0 (A100)."
        )
    return int(major), int(minor or 0)


class _NoWeights:
    """A weight source of shapes alone."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __contains__(self, name: str) -> bool:
        return True

    def tensor(self, name: str, shape: Any) -> Tensor:
        return torch.empty(tuple(shape), device=_META)

    def matrix(self, name: str, shape: tuple[int, int]) -> WeightPart:
        return torch.empty(shape, dtype=self._dtype, device=_META)


class _AbsentCard:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, capability: tuple[int, int]) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


_Launch = Callable[[], Any]


def _record(task: CompileTask) -> list[_Launch]:
    """Every different launch of captured steps, as a call that compiles it."""
    from triton.runtime import driver

    driver.set_active(_AbsentCard(task.capability))
    family = registry.resolve(task.hf_config)
    dtype = DTYPES[task.dtype]
    kernels = select_absent_kernels(task.capability, task.config.batch_invariant)
    model = family.build(_NoWeights(dtype), kernels, dtype, _META, task.max_model_len)
    limits = step_limits(task.config, _CUDA, task.max_model_len)
    stack = adapter_stack(task.config, model, dtype, _META)
    runner = make_runner(model, kernels, limits, dtype, _META, use_graphs=True, stack=stack)
    with _recording() as launches:
        runner.run_covering()
    return list(launches.values())


@contextlib.contextmanager
def _recording() -> Iterator[dict[object, _Launch]]:
    """Launches of Triton's programs are collected, once each, and not made."""
    from triton.runtime.jit import JITFunction

    launches: dict[object, _Launch] = {}
    run = JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        key = (id(self), *map(_kind, args), *((k, _kind(v)) for k, v in kwargs.items()))
        launches.setdefault(key, lambda: run(self, *args, grid=grid, warmup=True, **kwargs))

    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run


def _kind(argument: Any) -> object:
    """What a program is specialised for, or finer."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if hasattr(argument, "block_shape"):  # a tensor descriptor
        return argument.base.dtype, tuple(argument.block_shape)
    if isinstance(argument, int) and not isinstance(argument, bool) and argument > 1:
        return int, argument % 16 == 0, argument.bit_length() > 31
    return argument


_to_compile: list[_Launch] = []
"""For the processes forked off: programs cannot be sent, but they are inherited."""


def _compile_in_processes(launches: list[_Launch], num_processes: int) -> list[tuple[float, str]]:
    """Compile them all; returns for each its seconds and its name."""
    _to_compile[:] = launches
    # This process has neither threads nor a CUDA context that a fork could break.
    context = multiprocessing.get_context("fork")
    with context.Pool(min(num_processes, max(1, len(launches)))) as pool:
        # The last ones recorded are no smaller than the first, so each is handed out alone.
        return pool.map(_compile, range(len(launches)), chunksize=1)


def _compile(index: int) -> tuple[float, str]:
    started_s = time.perf_counter()
    torch.set_num_threads(1)
    program = _to_compile[index]()
    # Triton before 3.7 compiles a C launcher for each program, too; later ones do it for all.
    with contextlib.suppress(Exception):
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(program.src, program.metadata)
    return time.perf_counter() - started_s, program.metadata.name


def main() -> int:
    """Entry point of the process a starting engine has beside it."""
    task = msgspec.json.decode(os.environ.pop(TASK_VARIABLE), type=CompileTask)
    configure_logging(task.config.log_format, task.config.log_level)
    compile_ahead(task)
    return 0


if __name__ == "__main__":
    sys.exit(main())

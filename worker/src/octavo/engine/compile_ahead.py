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
import gc
import json
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from octavo.config import EngineConfig
from octavo.engine.compiler_process import CompileTask, marker_of, use_kernel_cache
from octavo.engine.head_start import HeadStart, learn_compiler
from octavo.engine.model_shape import open_configuration
from octavo.engine.resolution import (
    dtype_name,
    resolve_dtype,
    resolve_max_model_len,
    step_limits,
)
from octavo.engine.runner_builder import adapter_stack, make_runner
from octavo.errors import ConfigError, OctavoError
from octavo.kernels.select import select_absent_kernels
from octavo.loading.absent_weights import META, AbsentWeights
from octavo.loading.checkpoint import DTYPES
from octavo.logs import configure_logging
from octavo.models import registry
from octavo.runner.cgroup import num_usable_cpus
from octavo.runner.model_runner import ModelRunner
from octavo.version import __version__

_log = logging.getLogger("octavo.engine.compile_ahead")  # also where it is the main program
_MAX_PROCESSES = 16
_CUDA = torch.device("cuda")


def compile_ahead(task: CompileTask) -> int:
    """Compile every program of a task; returns how many there are."""
    started_s = time.perf_counter()
    use_kernel_cache(task.config)
    pool = _CompilerPool(min(num_usable_cpus(), _MAX_PROCESSES))
    pool.start("launch utilities", _compile_launch_utilities)
    _import_compiler()  # not in a thread: two that import Triton at once find it half imported
    head_start = HeadStart()
    head_start.begin(learn_compiler)

    def found(name: str, call: Callable[[], object]) -> None:
        head_start.wait()  # long over; no thread may run at a fork
        pool.start(name, call)

    num_programs = find_launches(task, found)
    found_s = time.perf_counter() - started_s
    pool.wait()
    marker = marker_of(task)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"programs": num_programs, "octavo": __version__}))
    _log.info(
        "Compiled %d programs in %.1f s; all were found after %.1f s. The longest: %s",
        num_programs,
        time.perf_counter() - started_s,
        found_s,
        pool.longest(),
    )
    return num_programs


def warm_kernels(config: EngineConfig, capability: tuple[int, int]) -> tuple[int, Path]:
    """Compile for a model and a card that need not be here; returns how many, and where to.

    Of the model only its configuration is read (and fetched).
    """
    use_kernel_cache(config)
    checkpoint = open_configuration(config)
    task = CompileTask(
        config,
        checkpoint.hf_config,
        dtype_name(resolve_dtype(config, checkpoint, _CUDA)),
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


class _CompilerPool:
    """Calls in forked processes, which inherit what no pipe could carry: so many at a time.

    A call begins as soon as it is known, while others are still being found. This process has no
    CUDA context, and at a fork no other thread, that the fork could break.
    """

    def __init__(self, num_processes: int) -> None:
        self._num_processes = num_processes
        self._context = multiprocessing.get_context("fork")
        self._running: dict[int, tuple[str, float, multiprocessing.process.BaseProcess]] = {}
        self._taken: list[tuple[float, str]] = []
        self._failed: list[str] = []

    def start(self, name: str, call: Callable[[], object]) -> None:
        """Begin a call, once fewer than all processes are busy."""
        while len(self._running) >= self._num_processes:
            self._take_ended()
        process = self._context.Process(target=call, name=name)
        process.start()
        self._running[process.sentinel] = name, time.perf_counter(), process

    def wait(self) -> None:
        """Return when all calls have ended; raises OctavoError if one failed."""
        while self._running:
            self._take_ended()
        if self._failed:
            names = ", ".join(self._failed)
            raise OctavoError(f"{names} could not be compiled; what was printed before says why.")

    def longest(self) -> str:
        """The calls that took longest, for the log."""
        return ", ".join(f"{name} {seconds:.1f} s" for seconds, name in sorted(self._taken)[:-4:-1])

    def _take_ended(self) -> None:
        for sentinel in multiprocessing.connection.wait(list(self._running)):
            name, started_s, process = self._running.pop(sentinel)  # type: ignore[arg-type]
            process.join()
            self._taken.append((time.perf_counter() - started_s, name))
            if process.exitcode:
                self._failed.append(name)


def find_launches(task: CompileTask, found: Callable[[str, Callable[[], object]], None]) -> int:
    """Tell of every different launch of captured steps, as a call that compiles it; returns how
    many there are."""
    runner = absent_runner(task)
    with _recording(found) as launches:
        runner.run_covering()
    return len(launches)


def absent_runner(task: CompileTask) -> ModelRunner:
    """A runner without memory for a card that need not be here, of as few layers as will do."""
    from triton.runtime import driver

    driver.set_active(_AbsentCard(task.capability))
    family = registry.resolve(task.hf_config).abridged()
    dtype = DTYPES[task.dtype]
    kernels = select_absent_kernels(task.capability, task.config.batch_invariant)
    model = family.build(AbsentWeights(dtype), kernels, dtype, META, task.max_model_len)
    limits = step_limits(task.config, _CUDA, task.max_model_len)
    stack = adapter_stack(task.config, model, META)
    num_tokens = limits.max_num_batched_tokens
    return make_runner(model, kernels, limits, dtype, META, num_tokens, stack)


@contextlib.contextmanager
def _recording(found: Callable[[str, Callable[[], object]], None]) -> Iterator[set[object]]:
    """Launches of Triton's programs are told of, once each, and not made; yields their kinds."""
    from triton.runtime.jit import JITFunction

    launches: set[object] = set()
    run = JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        # Keywords are constants of the program and options of its compilation: each value counts.
        key = (id(self), *map(_kind, self.params, args), *kwargs.items())
        if key not in launches:
            launches.add(key)
            found(
                self.__name__,
                lambda: _compile(lambda: run(self, *args, grid=grid, warmup=True, **kwargs)),
            )

    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run


def _kind(parameter: Any, argument: Any) -> object:
    """What a program is specialised for, or finer."""
    if isinstance(argument, Tensor):
        is_aligned = argument.data_ptr() % 16 == 0
        return argument.dtype, is_aligned or parameter.do_not_specialize_on_alignment
    if hasattr(argument, "block_shape"):  # a tensor descriptor
        return argument.base.dtype, tuple(argument.block_shape)
    if isinstance(argument, int) and not isinstance(argument, bool):
        if parameter.do_not_specialize:
            return int, argument.bit_length() > 31
        if argument > 1:
            return int, argument % 16 == 0, argument.bit_length() > 31
    return argument


def _compile(launch: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    program = launch()
    # Triton before 3.7 compiles a C launcher for each program, too; later ones do it for all.
    with contextlib.suppress(Exception):
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(program.src, program.metadata)


def _import_compiler() -> None:
    """What each forked process would import for itself: a part of Triton is imported late."""
    import octavo.kernels.triton  # noqa: F401

    with contextlib.suppress(Exception):  # saves time only
        import triton.experimental.gluon  # noqa: F401


def _compile_launch_utilities() -> None:
    """What Triton compiles with the C compiler when it first meets a card."""
    with contextlib.suppress(Exception):  # no driver: it is compiled, and cannot be loaded
        from triton.backends.nvidia.driver import CudaUtils

        CudaUtils()


def main() -> int:
    """Entry point of the process a starting engine has beside it; the engine says what to compile
    once it knows, or ends without a word."""
    gc.disable()  # it would be looked for in all of torch, and there is none
    _import_compiler()  # takes a while, in which the engine finds its model
    with contextlib.suppress(Exception):  # each forked process would do it for itself
        learn_compiler()
    told = sys.stdin.buffer.read()
    if not told:
        return 0
    task = msgspec.json.decode(told, type=CompileTask)
    configure_logging(task.config.log_format, task.config.log_level)
    compile_ahead(task)
    return 0


if __name__ == "__main__":
    sys.exit(main())

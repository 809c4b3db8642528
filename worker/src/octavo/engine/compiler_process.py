"""A process that compiles a model's kernels while the engine loads its weights.

Knows what compiled programs depend on and whether they are in Triton's cache already;
:mod:`octavo.engine.compile_ahead` is what runs in the process. That imports torch, which takes
seconds, as does the engine: so the process can be started before either knows what to compile,
and is told through a pipe. It ends when the pipe does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from octavo.config import EngineConfig
from octavo.engine.head_start import may_use_gpu

_log = logging.getLogger(__name__)
_CACHE_VARIABLE = "TRITON_CACHE_DIR"
_PACKAGE = Path(__file__).parents[1]
_DECIDING = ("kernels", "layers", "models", "runner", "sampling")
"""Rooms whose sources say what is launched, and in which shapes."""


@dataclass(frozen=True, slots=True)
class CompileTask:
    """What to compile for: all that compiled programs depend on."""

    config: EngineConfig
    hf_config: Mapping[str, object]
    """The model's configuration, overrides included."""
    dtype: str
    max_model_len: int
    capability: tuple[int, int]
    """The card's compute capability."""


def use_kernel_cache(config: EngineConfig) -> None:
    """Let Triton keep compiled programs where the config says; before Triton is imported."""
    if config.kernel_cache_dir is not None:
        os.environ[_CACHE_VARIABLE] = config.kernel_cache_dir


class CompilerProcess:
    """The process; none where everything is compiled already, or there is nothing to compile."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self, config: EngineConfig) -> None:
        """Start it already, before torch is imported here, if it will probably be needed: there is
        a GPU, and no kernels were compiled before."""
        if config.kernels not in ("auto", "triton") or not may_use_gpu(config):
            return
        use_kernel_cache(config)
        try:
            from triton import knobs
        except ImportError:
            return
        if not any(Path(knobs.cache.dir).glob(_marker("*"))):
            self._start()

    def compile(self, task: CompileTask | None) -> None:
        """Begin, unless there is nothing to do."""
        if task is None or marker_of(task).is_file():
            self.close()
            return
        process = self._process or self._start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(msgspec.json.encode(task))

    def wait(self) -> None:
        """Until it is done. Whatever it failed at is compiled when first launched."""
        if self._process is not None and self._process.wait():
            _log.warning(
                "Compiling ahead failed (status %s); kernels are compiled as they are launched.",
                self._process.returncode,
            )

    def close(self) -> None:
        """End it where it is not needed."""
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate()
        self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "octavo.engine.compile_ahead"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        return self._process


def marker_of(task: CompileTask) -> Path:
    """A file in Triton's cache that says that a task is done: it is named for everything that
    decides what is compiled, Octavo's sources included."""
    import triton
    from triton import knobs

    known = hashlib.blake2b(digest_size=16)
    for room in _DECIDING:
        for source in sorted((_PACKAGE / room).rglob("*.py")):
            known.update(source.read_bytes())
    config = task.config
    facts = (
        task.hf_config,
        task.dtype,
        task.max_model_len,
        task.capability,
        config.block_size,
        config.max_num_seqs,
        config.max_num_batched_tokens,
        config.batch_invariant,
        (config.max_loras, config.max_lora_rank) if config.enable_lora else None,
        triton.__version__,
    )
    known.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return Path(knobs.cache.dir) / _marker(known.hexdigest())


def _marker(name: str) -> str:
    return f"octavo-{name}.json"

"""A process that compiles a model's kernels while the engine loads its weights.

Knows what compiled programs depend on and whether they are in Triton's cache already;
:mod:`octavo.engine.compile_ahead` is what runs in the process.
"""

from __future__ import annotations

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

_log = logging.getLogger(__name__)
TASK_VARIABLE = "OCTAVO_COMPILE_TASK"
_CACHE_VARIABLE = "TRITON_CACHE_DIR"


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

    def __init__(self, task: CompileTask | None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if task is None or marker_of(task).is_file():
            return
        environment = os.environ | {TASK_VARIABLE: msgspec.json.encode(task).decode()}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "octavo.engine.compile_ahead"], env=environment
        )

    def wait(self) -> None:
        """Until it is done. Whatever it failed at is compiled when first launched."""
        if self._process is not None and self._process.wait():
            _log.warning(
                "Compiling ahead failed (status %s); kernels are compiled as they are launched.",
                self._process.returncode,
            )


def marker_of(task: CompileTask) -> Path:
    """A file in Triton's cache that says that a task is done: it is named for everything that
    decides what is compiled, Octavo's kernels included."""
    import triton
    from triton import knobs

    known = hashlib.blake2b(digest_size=16)
    for source in sorted((Path(__file__).parents[1] / "kernels" / "triton").glob("*.py")):
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
    return Path(knobs.cache.dir) / f"octavo-{known.hexdigest()}.json"

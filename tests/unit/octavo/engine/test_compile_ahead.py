"""Kernels are compiled for a card that is not here, once, and where they are told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.config import EngineConfig
from octavo.engine import compiler_process, head_start
from octavo.engine.compile_ahead import capability_of
from octavo.engine.compiler_process import CompilerProcess, CompileTask, marker_of
from octavo.errors import ConfigError
from tiny_models import make_tiny_model, tiny_config

pytest.importorskip("triton")

TASK = CompileTask(
    EngineConfig(model="m"), tiny_config("llama"), "bfloat16", max_model_len=128, capability=(9, 0)
)


def warm(model: Path, cache: Path, *flags: str) -> str:
    """``octavo warm-kernels``, in a process of its own as Triton keeps what it is told first."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "octavo", "warm-kernels", str(model)),
            *("--dtype", "bfloat16", "--max-num-seqs", "4", "--max-num-batched-tokens", "64"),
            *("--kernel-cache-dir", str(cache), *flags),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_a_models_kernels_are_compiled_once_into_the_folder(tmp_path: Path) -> None:
    model, cache = make_tiny_model("llama", tmp_path / "model"), tmp_path / "cache"
    (model / "model.safetensors").unlink()  # its weights are not needed
    said = warm(model, cache)
    assert f"kernels for compute capability 9.0 in {cache}" in said
    programs = {path.name for path in cache.glob("*/*.cubin")}
    for name in ("_prefill", "_decode", "_rms_norm", "_rope_and_cache", "_gated", "_draw"):
        assert f"{name}_program.cubin" in programs
    assert "_filtered_draw_program.cubin" in programs
    (marker,) = cache.glob("octavo-*.json")
    assert marker.is_file()
    before = sorted(cache.glob("*/*.cubin"))
    assert warm(model, cache) == said
    assert sorted(cache.glob("*/*.cubin")) == before


def test_steps_of_all_shapes_launch_what_was_compiled_ahead() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[3] / "support/launch_coverage.py")],
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stdout.splitlines()
    counts = [int(line.split()[0]) for line in lines if "programs ahead" in line]
    assert len(lines) == len(counts) == 2, done.stdout
    assert min(counts) > 20


def test_the_marker_is_named_for_what_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    config = TASK.config
    others = [
        replace(TASK, capability=(8, 9)),
        replace(TASK, dtype="float32"),
        replace(TASK, max_model_len=64),
        replace(TASK, hf_config=tiny_config("llama", hidden_size=64)),
        replace(TASK, config=replace(config, block_size=32)),
        replace(TASK, config=replace(config, batch_invariant=True)),
        replace(TASK, config=replace(config, max_num_seqs=7)),
    ]
    names = {marker_of(task) for task in [TASK, *others]}
    assert len(names) == 1 + len(others)
    assert marker_of(replace(TASK, config=replace(config, seed=3))) in names


@pytest.mark.parametrize(
    "source", ["kernels/triton/linear.py", "models/decoder.py", "runner/step_shapes.py"]
)
def test_another_version_of_what_is_launched_is_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    copied = shutil.copytree(compiler_process._PACKAGE, tmp_path / "octavo")
    before = marker_of(TASK)
    monkeypatch.setattr(compiler_process, "_PACKAGE", copied)
    assert marker_of(TASK) == before
    with (copied / source).open("a") as file:
        file.write("\n")
    assert marker_of(TASK) != before


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Triton's, empty, on a machine that seems to have a GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(head_start, "_GPU", tmp_path)
    return tmp_path


def test_no_process_is_started_where_all_is_compiled(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    marker_of(TASK).write_text("{}")
    monkeypatch.setattr(compiler_process.subprocess, "Popen", None)  # cannot be called
    compiler = CompilerProcess()
    compiler.prepare(TASK.config)
    compiler.compile(TASK)
    compiler.wait()
    compiler.compile(None)
    compiler.wait()


def test_no_process_is_prepared_where_there_is_no_use_for_one(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(compiler_process.subprocess, "Popen", None)
    CompilerProcess().prepare(replace(TASK.config, device="cpu"))
    CompilerProcess().prepare(replace(TASK.config, kernels="reference"))
    monkeypatch.setattr(head_start, "_GPU", cache / "none")
    CompilerProcess().prepare(TASK.config)


def test_a_process_that_fails_is_told_of_and_does_no_harm(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Prepared before: it hears of its task through the pipe."""
    compiler = CompilerProcess()
    compiler.prepare(TASK.config)
    started = compiler._process
    assert started is not None
    compiler.compile(replace(TASK, hf_config={"architectures": ["NoSuchForCausalLM"]}))
    assert compiler._process is started
    compiler.wait()
    assert started.returncode == 1
    assert "kernels are compiled as they are launched" in caplog.text


def test_a_process_that_is_not_needed_after_all_is_ended(cache: Path) -> None:
    compiler = CompilerProcess()
    compiler.prepare(TASK.config)
    started = compiler._process
    assert started is not None
    marker_of(TASK).write_text("{}")  # by another engine, meanwhile
    compiler.compile(TASK)
    assert started.returncode is not None


def test_a_prepared_process_ends_with_an_engine_that_says_nothing(cache: Path) -> None:
    compiler = CompilerProcess()
    compiler.prepare(TASK.config)
    started = compiler._process
    assert started is not None
    assert started.stdin is not None
    started.stdin.close()  # as the system does when the engine dies
    assert started.wait(120) == 0


@pytest.mark.parametrize(("text", "pair"), [("9.0", (9, 0)), ("8.9", (8, 9)), ("12", (12, 0))])
def test_capabilities_are_read(text: str, pair: tuple[int, int]) -> None:
    assert capability_of(text) == pair


@pytest.mark.parametrize("text", ["", "H100", "9.x", "-9.0", "9."])
def test_what_is_no_capability_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as 9\.0"):
        capability_of(text)

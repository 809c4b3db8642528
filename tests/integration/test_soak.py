"""The soak of benchmarks/soak.py, a few seconds of it, on a model of a few thousand weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny_models import make_tiny_model

_SOAK = Path(__file__).parents[2] / "benchmarks/soak.py"


def soak(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    model = make_tiny_model("llama", folder)
    done = subprocess.run(
        [
            sys.executable,
            str(_SOAK),
            *("--model", str(model), "--device", "cpu", "--max-model-len", "256"),
            # Of 512 blocks; each takes 2 layers, 2 of keys and values, 2 heads of 16, 16 tokens.
            *("--kv-cache-memory-bytes", str(512 * 2 * 2 * 2 * 16 * 16 * 4)),
            *("--max-num-seqs", "128", "--stall-limit", "120", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.stdout, done.stderr[-4000:]
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("arguments", [(), ("--batch-invariant",)], ids=["plain", "invariant"])
def test_a_full_cache_with_aborts_and_preemptions_harms_nobody(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    status, figures = soak(tmp_path, "--requests", "350", "--checks", "12", *arguments)
    assert (status, figures["faults"]) == (0, [])
    assert figures["preemptions"] > 0
    assert figures["ends"]["abort"] > 0
    assert figures["checked"] >= 8


def test_adapters_that_come_and_go_meanwhile_harm_nobody(tmp_path: Path) -> None:
    """Eight names, four host entries, two slots; each answer bit for bit that of its generation."""
    arguments = ("--adapters", "8", "--max-lora-rank", "4", "--batch-invariant")
    arguments += ("--requests", "900", "--checks", "60", "--max-num-seqs", "64")
    status, figures = soak(tmp_path, *arguments)
    assert (status, figures["faults"]) == (0, [])
    assert figures["checked"] >= 8
    assert figures["told_apart"] >= 3
    for change in ("loaded", "replaced", "refused"):
        assert figures["changes"][change] > 0


def test_a_soak_that_does_not_fill_the_cache_is_a_fault(tmp_path: Path) -> None:
    status, figures = soak(tmp_path, "--requests", "10", "--checks", "1", "--max-num-seqs", "4")
    assert status == 1
    assert any("nobody was preempted" in fault for fault in figures["faults"])
    assert any("full, not 90 %" in fault for fault in figures["faults"])

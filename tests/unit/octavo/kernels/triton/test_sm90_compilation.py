"""Every program compiles for Hopper, without a GPU, and as tightly as it should."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_COMPILER = Path(__file__).parents[4] / "support/sm90_compiler.py"
_REGISTERS = 65536
_SHARED_BYTES = 227 * 1024


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(_COMPILER)],
        env=environment
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _of(programs: list[dict[str, Any]], case: str) -> list[dict[str, Any]]:
    found = [program for program in programs if program["case"] == case]
    assert found
    return found


def test_no_program_spills_registers(programs: list[dict[str, Any]]) -> None:
    spilling = [p for p in programs if p["num_spills"] or p["stack_bytes"]]
    assert not spilling


def test_every_program_fits_a_multiprocessor(programs: list[dict[str, Any]]) -> None:
    for program in programs:
        assert program["shared_bytes"] <= _SHARED_BYTES, program
        assert program["registers"] * 32 * program["num_warps"] <= _REGISTERS, program


def test_serving_any_batch_compiles_each_program_once(programs: list[dict[str, Any]]) -> None:
    names = [program["name"] for program in _of(programs, "variants")]
    names.remove("_gated_program")  # one for each of its two activations
    assert len(names) == len(set(names)) == 9


def test_prefill_attention_uses_hoppers_matrix_instructions(
    programs: list[dict[str, Any]],
) -> None:
    half_precision = [p for p in _of(programs, "prefill") if p["wgmma"]]
    assert len(half_precision) >= 8  # all but those in float32, which keep its bits
    assert all(p["async_copies"] > 0 for p in half_precision)


def test_decode_attention_reads_ahead_and_leaves_room_for_three_programs(
    programs: list[dict[str, Any]],
) -> None:
    for program in _of(programs, "decode"):
        assert program["async_copies"] > 0, program
        assert 3 * (program["shared_bytes"] + 1024) <= _SHARED_BYTES + 4096 or (
            program["mma"] == 0  # float32
        ), program


def test_row_programs_load_sixteen_bytes_at_a_time(programs: list[dict[str, Any]]) -> None:
    for case in ["norm", "activation", "sampling"]:
        assert all(program["wide_loads"] > 0 for program in _of(programs, case)), case


def test_sampling_takes_logarithms_that_are_exact_near_one(
    programs: list[dict[str, Any]],
) -> None:
    # The card's own approximation is off by 2**-22 near 1: the largest noise would be arbitrary.
    assert all(program["accurate_log"] for program in _of(programs, "sampling"))

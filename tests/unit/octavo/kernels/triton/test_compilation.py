"""Every program compiles, without a GPU, and as tightly as it should."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(1300)
"""A hundred programs, on a machine whose neighbours may leave it half a core."""
_COMPILER = Path(__file__).parents[4] / "support/absent_gpu.py"
_KEYS = """
import importlib, pkgutil, sys
import octavo.kernels.triton as package
from triton.runtime.jit import JITFunction
found = {}
for module in pkgutil.iter_modules(package.__path__):
    for value in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
        if isinstance(value, JITFunction):
            found[f"{value.module}.{value.__name__}"] = value
for name in sorted(found, reverse=sys.argv[1] == "backwards"):
    found[name].cache_key
for name, value in sorted(found.items()):
    print(name, value.cache_key)
"""
_REGISTERS = 65536
_SHARED_BYTES = {90: 227 * 1024, 89: 99 * 1024}


def _environment() -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _compile(cache: Path, capability: int, *cases: str) -> list[dict[str, Any]]:
    """In a process of its own, where Triton compiles whatever other tests told it to do."""
    done = subprocess.run(
        [sys.executable, str(_COMPILER), str(capability), *cases],
        env=_environment() | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every case for Hopper."""
    return _compile(tmp_path_factory.mktemp("triton"), 90)


def _of(programs: list[dict[str, Any]], case: str) -> list[dict[str, Any]]:
    found = [program for program in programs if program["case"] == case]
    assert found
    return found


def _is_wide_float32(program: dict[str, Any]) -> bool:
    """Attention in float32: its products take registers; right, not fast."""
    return program["case"] in {"decode", "prefill"} and not program["mma"] + program["wgmma"]


def _assert_fits(program: dict[str, Any]) -> None:
    assert program["shared_bytes"] <= _SHARED_BYTES[program["capability"]], program
    assert program["registers"] * 32 * program["num_warps"] <= _REGISTERS, program


def test_programs_are_found_again_in_whatever_order_they_are_asked_for() -> None:
    """Else what was compiled ahead is compiled once more when it is first launched."""
    forwards, backwards = (
        subprocess.run(
            [sys.executable, "-c", _KEYS, order],
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=250,
            check=True,
        ).stdout.splitlines()
        for order in ("forwards", "backwards")
    )
    assert len(forwards) > 40
    assert forwards == backwards


def test_no_program_spills_registers(programs: list[dict[str, Any]]) -> None:
    for program in programs:
        # One group of warps and some spills measured faster there than two groups and none.
        is_excused = _is_wide_float32(program) or program["case"] == "prefill-new"
        assert program["stack_bytes"] == 0 or is_excused, program


def test_masked_and_clear_tiles_are_computed_alike(programs: list[dict[str, Any]]) -> None:
    """In both the scale and the maximum are one fused instruction; a subtraction of its own in
    one of them would give a query other bits when its chunk begins elsewhere."""
    for program in _of(programs, "prefill") + _of(programs, "prefill-new"):
        is_told = not _is_wide_float32(program)  # there one thread has too few of either
        assert not is_told or 3 * program["subtractions"] <= program["exponentials"], program


def test_every_program_fits_a_multiprocessor(programs: list[dict[str, Any]]) -> None:
    for program in programs:
        _assert_fits(program)


def test_attention_fits_smaller_cards(tmp_path: Path) -> None:
    smaller = _compile(tmp_path, 89, "attention")
    assert len(smaller) == 6
    for program in smaller:
        _assert_fits(program)
        assert program["stack_bytes"] == 0, program


def test_serving_any_batch_compiles_each_program_once(programs: list[dict[str, Any]]) -> None:
    names = [program["name"] for program in _of(programs, "variants")]
    names.remove("_gated_program")  # one for each of its two activations
    assert len(names) == len(set(names)) == 9


def test_prefill_attention_uses_hoppers_matrix_instructions(
    programs: list[dict[str, Any]],
) -> None:
    prefills = _of(programs, "prefill")
    half_precision = [p for p in prefills if p["wgmma"]]
    assert len(half_precision) == len(prefills) - 2  # float32 keeps its bits instead
    assert all(p["async_copies"] > 0 for p in half_precision)


def test_products_run_on_warpgroup_instructions_whatever_their_tile(
    programs: list[dict[str, Any]],
) -> None:
    half_precision = [p for p in _of(programs, "product") if p["wgmma"]]
    # Three tile shapes; that all sum in the same order rests on it.
    assert len(half_precision) == 3
    assert all(p["async_copies"] > 0 for p in half_precision)


def test_new_keys_come_through_the_copy_engine(programs: list[dict[str, Any]]) -> None:
    for program in _of(programs, "prefill-new"):
        assert program["wgmma"] > 0, program
        assert program["tile_copies"] > 0, program


def test_decode_attention_reads_ahead_and_leaves_room_for_two_more_programs(
    programs: list[dict[str, Any]],
) -> None:
    for program in _of(programs, "decode"):
        assert program["async_copies"] > 0, program
        if not _is_wide_float32(program):
            assert 3 * (program["shared_bytes"] + 1024) <= 228 * 1024, program


def test_row_programs_load_sixteen_bytes_at_a_time(programs: list[dict[str, Any]]) -> None:
    for case in ["norm", "activation", "sampling"]:
        assert all(program["wide_loads"] > 0 for program in _of(programs, case)), case


def test_sampling_takes_logarithms_that_are_exact_near_one(
    programs: list[dict[str, Any]],
) -> None:
    # The card's own approximation is off by 2**-22 near 1: the largest noise would be arbitrary.
    assert all(program["accurate_log"] for program in _of(programs, "sampling"))


def test_tokens_of_an_adapter_are_taken_one_by_one_without_tensor_cores(
    programs: list[dict[str, Any]],
) -> None:
    """64 tokens of 64 adapters; and nowhere that more of one are likely."""
    found = [one for one in _of(programs, "adapters") if "by_token" in one["name"]]
    assert found
    for program in found:
        assert not program["mma"] + program["wgmma"], program
        assert program["registers"] <= 80, program  # so that six are on a multiprocessor

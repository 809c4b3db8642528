"""LoRA's programs, run by Triton's interpreter in a process of its own, against the reference."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import adapter_parity


@pytest.fixture(scope="module")
def errors() -> dict[str, list[str | None]]:
    """Of each case: an error, or None, for each dtype it ran on."""
    done = subprocess.run(
        [sys.executable, str(Path(adapter_parity.__file__))],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=280,
    )
    results: dict[str, list[str | None]] = {}
    for line in done.stdout.splitlines():
        result = json.loads(line)
        results.setdefault(result["case"], []).append(result["error"])
    for name in adapter_parity.ADAPTER_CASES:
        results.setdefault(name, [f"exit code {done.returncode}\n{done.stderr[-4000:]}"])
    return results


@pytest.mark.parametrize("case", adapter_parity.ADAPTER_CASES)
def test_interpreted_program_agrees_with_the_reference(
    case: str, errors: dict[str, list[str | None]]
) -> None:
    failures = [error for error in errors[case] if error is not None]
    assert not failures, "\n".join(failures)
    assert len(errors[case]) == 2  # float32 and bf16

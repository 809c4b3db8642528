"""Triton's programs, run by its interpreter, against the reference.

Triton reads ``TRITON_INTERPRET`` when it is first imported, and other tests of this process may
have imported it, so the cases run in one process of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kernel_parity


@pytest.fixture(scope="module")
def errors(request: pytest.FixtureRequest) -> dict[str, list[str | None]]:
    """Of each case that was asked for: an error, or None, for each dtype it ran on."""
    names = [
        item.callspec.params["case"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    source = Path(kernel_parity.__file__)
    done = subprocess.run(
        [sys.executable, str(source), *names],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=250,
    )
    results: dict[str, list[str | None]] = {}
    for line in done.stdout.splitlines():
        result = json.loads(line)
        results.setdefault(result["case"], []).append(result["error"])
    for name in names:  # the process died in the first of the cases that are missing
        results.setdefault(name, [f"exit code {done.returncode}\n{done.stderr[-4000:]}"])
    return results


@pytest.mark.parametrize("case", kernel_parity.CASES | kernel_parity.ENGINE_CASES)
def test_interpreted_program_agrees_with_the_reference(
    case: str, errors: dict[str, list[str | None]]
) -> None:
    failures = [error for error in errors[case] if error is not None]
    assert not failures, "\n".join(failures)
    assert len(errors[case]) == 2  # float32 and bf16

"""Parity cases run by Triton's interpreter, in processes of their own.

Triton reads ``TRITON_INTERPRET`` when it is first imported, and other tests of this process may
have imported it. Two processes share the cases, because interpreting is slow and serial.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_NUM_PROCESSES = 2
TIMEOUT_S = 800.0
"""For all cases of a program; a busy machine takes many times what a quiet one does."""


def errors_of(program: str | None, names: Sequence[str]) -> dict[str, list[str | None]]:
    """Of each case an error, or None, for each dtype it ran on.

    ``program``: the file that runs the cases named on its command line and prints a line each.
    """
    assert program is not None
    shares = [names[i::_NUM_PROCESSES] for i in range(_NUM_PROCESSES)]
    running = [(_start(program, share), share) for share in shares if share]
    errors: dict[str, list[str | None]] = {}
    for process, share in running:
        try:
            printed, said = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            printed, said = process.communicate()
        for line in printed.splitlines():
            result = json.loads(line)
            errors.setdefault(result["case"], []).append(result["error"])
        for name in share:  # the process died in the first of the cases that are missing
            errors.setdefault(name, [f"exit code {process.returncode}\n{said[-4000:]}"])
    return errors


def _start(program: str, names: Sequence[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, str(Path(program)), *names],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

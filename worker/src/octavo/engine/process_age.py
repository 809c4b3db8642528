"""How long this process has lived: what a start takes begins with the interpreter's own."""

from __future__ import annotations

import os
import time
from pathlib import Path

_LOADED_S = time.monotonic()
_STARTED_FIELD = 19
"""Of /proc/PID/stat, counted after the name in parentheses: ``starttime`` (proc(5))."""


def seconds_since_process_start() -> float:
    """Where the system does not tell (not Linux), since this module was loaded."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[_STARTED_FIELD]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - _LOADED_S

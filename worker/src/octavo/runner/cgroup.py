"""What the container this process runs in allows: processors and memory, from Linux's cgroups.

A pod's limits are kept here and nowhere else: the machine's own numbers of cores and bytes say
nothing of them. Knows version 2 (docs.kernel.org/admin-guide/cgroup-v2.html) and memory and CPU
of version 1; where there is neither, there is no limit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def num_usable_cpus(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> int:
    """Cores this process may keep busy, at least 1; more threads would only be throttled."""
    cores = float(len(os.sched_getaffinity(0)))
    for folder in _folders(root, membership):
        match _words(folder / "cpu.max"):
            case [quota, period] if quota.isdigit() and int(period) > 0:
                cores = min(cores, int(quota) / int(period))
    quota_us = _number(root / "cpu" / "cpu.cfs_quota_us")
    period_us = _number(root / "cpu" / "cpu.cfs_period_us")
    if quota_us and period_us:
        cores = min(cores, quota_us / period_us)
    # A share of a core is used by a thread as well: half a core is one, two and a half are two.
    return max(1, math.floor(cores))


def memory_bytes_left(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes until the tightest limit; None without one. File pages that can be dropped count as
    free: a model's mapped file is no reason to have less of a cache."""
    left: int | None = None
    for folder in _folders(root, membership):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and used is not None:
            free = limit - used + _inactive_file(folder / "memory.stat")
            left = free if left is None else min(left, free)
    limit = _number(root / "memory" / "memory.limit_in_bytes")
    used = _number(root / "memory" / "memory.usage_in_bytes")
    if left is None and limit is not None and used is not None:
        left = limit - used + _inactive_file(root / "memory" / "memory.stat")
    return None if left is None else max(left, 0)


def _folders(root: Path, membership: Path) -> Iterator[Path]:
    """The group of this process and those around it, up to the root."""
    path = "/"
    for line in _lines(membership):
        if line.startswith("0::"):
            path = line.removeprefix("0::")
    folder = root / path.lstrip("/")
    while folder != root and folder.is_relative_to(root):
        yield folder
        folder = folder.parent
    yield root


def _inactive_file(path: Path) -> int:
    for line in _lines(path):
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    """A file's only number; None where there is none (``max``, ``-1``, no such file)."""
    words = _words(path)
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else None


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []

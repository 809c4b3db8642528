"""What a container's limits mean for threads and memory, read from made-up cgroup files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo.runner.cgroup import memory_bytes_left, num_usable_cpus

GIB = 1 << 30
CORES = 8


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)), raising=False)


def tree(root: Path, files: dict[str, str], group: str = "/") -> tuple[Path, Path]:
    """A cgroup file system with these files, and the membership of a process in ``group``."""
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    membership = root / "membership"
    membership.write_text(f"1:name=systemd:/x\n0::{group}\n")
    return root / "cgroup", membership


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, CORES),
        ({"cpu.max": "max 100000"}, CORES),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "3200000 100000"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CORES),
    ],
)
def test_a_quota_limits_the_threads(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert num_usable_cpus(*tree(tmp_path, files)) == cores


def test_the_tightest_group_around_the_process_counts(tmp_path: Path) -> None:
    files = {
        "pods/cpu.max": "400000 100000",
        "pods/one/cpu.max": "max 100000",
        "pods/memory.max": str(4 * GIB),
        "pods/memory.current": str(3 * GIB),
        "pods/one/memory.max": str(2 * GIB),
        "pods/one/memory.current": str(GIB // 2),
        "other/cpu.max": "100000 100000",
    }
    root, membership = tree(tmp_path, files, group="/pods/one")
    assert num_usable_cpus(root, membership) == 4
    assert memory_bytes_left(root, membership) == GIB


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, None),
        ({"memory.max": "max", "memory.current": "5"}, None),
        ({"memory.max": "100", "memory.current": "30"}, 70),
        (
            {
                "memory.max": "100",
                "memory.current": "90",
                "memory.stat": "anon 10\nfile 80\ninactive_file 50",
            },
            60,
        ),
        ({"memory.max": "100", "memory.current": "130"}, 0),
        (
            {"memory/memory.limit_in_bytes": "100", "memory/memory.usage_in_bytes": "40"},
            60,
        ),
    ],
)
def test_memory_left_is_what_the_container_may_still_get(
    tmp_path: Path, files: dict[str, str], left: int | None
) -> None:
    assert memory_bytes_left(*tree(tmp_path, files)) == left


def test_a_group_outside_of_what_is_mounted_is_no_harm(tmp_path: Path) -> None:
    root, membership = tree(tmp_path, {"cpu.max": "100000 100000"}, group="/../../elsewhere")
    assert num_usable_cpus(root, membership) == 1
    assert memory_bytes_left(tmp_path / "nothing", tmp_path / "nothing") is None

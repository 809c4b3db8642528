"""One process at a time in a folder of downloads, on one machine or on a shared volume.

A kernel lock: it goes with the process that holds it, however that ends. NFS from version 4 on
honours it between nodes.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Hold the lock file at ``path``, made where it is not there; waits for whoever has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""Whether what lies in a cache of the Hugging Face hub is what the hub gave.

The hub names the blob of a large file by its SHA-256, so a blob tells what it should hold. Small
files go by a git hash and are left to the parsers. A digest that was found right is remembered
beside the cache with the blob's size and time, so that a volume is read once, not at every start.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_SHA256 = re.compile(r"[0-9a-f]{64}")


def damaged_blobs(snapshot: Path, memory: Path) -> list[Path]:
    """Blobs that files of ``snapshot`` point at and that do not have their digest.

    ``memory`` is a folder for marks; it is made where it is not there.
    """
    damaged = []
    for link in sorted(snapshot.iterdir()):
        blob = link.resolve()
        if not _SHA256.fullmatch(blob.name):
            continue
        status = blob.stat()
        mark, known = memory / blob.name, f"{status.st_size} {status.st_mtime_ns}"
        if mark.is_file() and mark.read_text() == known:
            continue
        if _sha256(blob) != blob.name:
            damaged.append(blob)
            continue
        memory.mkdir(parents=True, exist_ok=True)
        mark.write_text(known)
    return damaged


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

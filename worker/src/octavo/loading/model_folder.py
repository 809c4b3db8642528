"""Reading a model's folder without trusting it.

A folder may come from anywhere. Names out of its files, and symbolic links in it, must not lead
out of it; its JSON may be anything.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from octavo.errors import ModelLoadError

_SNAPSHOTS = "snapshots"


def file_inside(folder: Path, name: str) -> Path:
    """The path of a file of the folder.

    Raises ModelLoadError for a name or a symbolic link that leads out of the folder, and for a
    file that is not there. The hub's cache links from ``snapshots/COMMIT`` to ``blobs`` beside
    it, which counts as inside.
    """
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
        raise ModelLoadError(
            f"{folder} names the file {name!r:.120}, which is outside of it; such a model is not "
            "loaded."
        )
    path = folder / name
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        raise ModelLoadError(f"{path} is missing or cannot be reached; download it again.") from exc
    root = folder.resolve()
    if root.parent.name == _SNAPSHOTS:
        root = root.parent.parent
    if not target.is_relative_to(root):
        raise ModelLoadError(
            f"{path} is a link to {target}, outside of the model's folder; put a copy of the file "
            "there instead."
        )
    if not target.is_file():
        raise ModelLoadError(f"{path} is not a file.")
    return path


def read_json(folder: Path, name: str) -> dict[str, object]:
    """A JSON object of the folder. Raises ModelLoadError where it cannot be had."""
    path = file_inside(folder, name)
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelLoadError(f"{path} cannot be read as JSON ({exc}).") from exc
    if not isinstance(values, dict):
        raise ModelLoadError(f"{path} must hold a JSON object, not a {type(values).__name__}.")
    return values


def read_json_if_there(folder: Path, name: str) -> dict[str, object]:
    """As :func:`read_json`; empty when there is no such file."""
    return read_json(folder, name) if (folder / name).exists() else {}

"""Where Octavo keeps what it downloads: ``$XDG_CACHE_HOME/octavo`` or ``~/.cache/octavo``."""

from __future__ import annotations

import os
from pathlib import Path

from octavo.errors import ModelLoadError


def cache_folder() -> Path:
    """The folder, created where it is not there yet. Raises ModelLoadError where it cannot be."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is invalid and to be ignored.
    root = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    folder = root / "octavo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ModelLoadError(
            f"The cache folder {folder} cannot be made ({exc.strerror}); set XDG_CACHE_HOME to a "
            "folder that can be written."
        ) from exc
    return folder

"""Whether Python finds libraries compiled: torch's thousand files take seconds to compile."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType

_log = logging.getLogger(__name__)


def warn_unless_kept(module: ModuleType) -> None:
    """Say so where the bytecode of an imported package could not be kept: each start compiles it
    anew. pip compiles what it installs; uv does not, and a container may write nowhere.

    Source: PEP 3147, and Python's documentation of ``PYTHONPYCACHEPREFIX`` and ``compileall``.
    """
    spec = module.__spec__
    if spec is None or spec.origin is None or spec.cached is None or Path(spec.cached).exists():
        return
    folder = Path(spec.origin).parent
    _log.warning(
        "%s is compiled to bytecode at each start, which takes seconds, as that cannot be kept in "
        "%s: run `python -m compileall -q %s` where it can be, as the image is made (uv: "
        "--compile-bytecode), or set PYTHONPYCACHEPREFIX to a folder that stays.",
        module.__name__,
        Path(spec.cached).parent,
        folder.parent,
    )

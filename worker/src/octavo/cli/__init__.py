"""The command line: ``octavo serve | chat | fetch | version``.

:func:`main` is the console script, :func:`build_parser` the contract that others test against.
Importing this package imports neither torch nor the server.
"""

from __future__ import annotations

from octavo.cli.entry import main
from octavo.cli.parser import build_parser, flags_of

__all__ = ["build_parser", "flags_of", "main"]

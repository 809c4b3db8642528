"""Reads the arguments, runs the command, and turns our errors into one line and a status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from octavo.cli.parser import build_parser, parse_arguments
from octavo.errors import ConfigError, OctavoError
from octavo.version import __version__

_USAGE_STATUS = 2
_INTERRUPTED_STATUS = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``octavo`` with ``arguments`` (``sys.argv`` if left out); returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        _check_text(given)
        return _run(parse_arguments(build_parser(), given))
    except OctavoError as error:
        print(f"octavo: {error}", file=sys.stderr)
        return _USAGE_STATUS if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return _INTERRUPTED_STATUS


def _check_text(arguments: Sequence[str]) -> None:
    """They go to the engine, and to clients, as text: the name of a file may be none."""
    for argument in arguments:
        if any("\ud800" <= one <= "\udfff" for one in argument):
            raise ConfigError(f"The argument {argument!r:.200} is not UTF-8; rename what it names.")


def _run(parsed: argparse.Namespace) -> int:
    """Each command imports what it needs, so that the others start at once."""
    match parsed.command:
        case "serve":
            from octavo.cli import serve

            return serve.run(parsed)
        case "chat":
            from octavo.cli import chat

            return chat.run(parsed)
        case "run-batch":
            from octavo.cli import run_batch

            return run_batch.run(parsed)
        case "fetch":
            from octavo.cli import fetch

            return fetch.run(parsed)
        case "inspect":
            from octavo.cli import inspection

            return inspection.run(parsed)
        case "warm-kernels":
            from octavo.cli import warm_kernels

            return warm_kernels.run(parsed)
        case _:
            print(f"octavo {__version__}")
            return 0

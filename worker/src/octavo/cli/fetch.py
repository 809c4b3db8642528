"""``octavo fetch``: bring a model's files to this machine and print where they are."""

from __future__ import annotations

import argparse

from octavo.loading.model_files import locate_model


def run(parsed: argparse.Namespace) -> int:
    """Prints the path alone, for scripts. Raises ModelLoadError when it cannot be had."""
    print(locate_model(parsed.model, parsed.revision, parsed.download_dir))
    return 0

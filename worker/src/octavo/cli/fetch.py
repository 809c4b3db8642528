"""``octavo fetch``: bring a model's files to this machine and print where they are."""

from __future__ import annotations

import argparse

from octavo.loading.model_files import find_model


def run(parsed: argparse.Namespace) -> int:
    """Prints the path alone, for scripts. Raises ModelLoadError when it cannot be had."""
    path = find_model(
        parsed.model,
        revision=parsed.revision,
        download_dir=parsed.download_dir,
        is_checked=True,
    )
    print(path)
    return 0

"""Adapters that the command line names: whether any can never be served, before weights are loaded.

Knows what their folders tell without the model. What must be fetched first is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.engine.first_adapters import told_of_module
from octavo.errors import SourceUnreachableError
from octavo.lora.adapter_folder import check_folder
from octavo.lora.adapter_source import AdapterSource, find_near


def check_named_adapters(modules: Sequence[tuple[str, str]], max_rank: int) -> None:
    """``modules``: names and sources. Raises the error that loading the first bad one would end
    with; not for a disk in trouble, which may be well by then."""
    for name, path in modules:
        try:
            with told_of_module(name, path):
                _check(AdapterSource(path), max_rank)
        except SourceUnreachableError:
            continue


def _check(source: AdapterSource, max_rank: int) -> None:
    found = find_near(source)
    if found is not None:
        check_folder(found.folder, max_rank)

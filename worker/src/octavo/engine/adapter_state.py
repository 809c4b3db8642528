"""A file of adapters: what was loaded over the API, or what a new server shall have.

So that a server has them before it is ready, whoever loads them being away. Knows the file; what
is done with it is :mod:`.adapter_table`'s. Torch-free.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from octavo.lora.adapter_source import AdapterSource

_log = logging.getLogger(__name__)
_VERSION = 1


class RememberedAdapter(msgspec.Struct, frozen=True):
    """One entry; ``revision`` is the hub's commit, ``digest`` that of the files as loaded."""

    name: str
    path: str
    revision: str | None = None
    digest: str | None = None
    lazy: bool = False

    @property
    def source(self) -> AdapterSource:
        """What is to be loaded."""
        return AdapterSource(self.path, self.revision, self.digest)


class _Document(msgspec.Struct):
    version: int
    adapters: list[RememberedAdapter]


class AdapterStateFile:
    """Never raises: a server serves on without its memory, and says so in its log."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def exists(self) -> bool:
        """Whether anything was ever written."""
        return os.path.exists(self._path)  # which raises nothing, where Path.exists() does

    def read(self) -> list[RememberedAdapter]:
        """What was written last; nothing where there is no file, or none that can be understood."""
        try:
            document = msgspec.json.decode(self._path.read_bytes(), type=_Document)
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            _log.error("%s cannot be read, so no adapter is restored: %s", self._path, error)
            return []
        if document.version != _VERSION:
            _log.error(
                "%s has version %d, not %d, so no adapter is restored.",
                self._path,
                document.version,
                _VERSION,
            )
            return []
        return document.adapters

    def write(self, adapters: Sequence[RememberedAdapter]) -> None:
        """Replace the whole, at one moment: whoever reads sees all of it or what was before."""
        content = msgspec.json.encode(_Document(_VERSION, list(adapters)))
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with draft.open("wb") as file:
                file.write(msgspec.json.format(content) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        except OSError as error:
            _log.error(
                "%s cannot be written; adapters loaded now are gone after a restart: %s",
                self._path,
                error,
            )

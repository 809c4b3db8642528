"""The adapters that a server starts with: those it remembers or shall have, and the command line's.

Read side by side, before any request is taken, and told of as a phase of loading. Torch-free.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from octavo.engine.adapter_table import AdapterTable
from octavo.engine.messages import PhaseFinished, PhaseStarted
from octavo.errors import OctavoError
from octavo.lora.adapter_source import AdapterSource

_PHASE = "adapters"
_Tell = Callable[[PhaseStarted | PhaseFinished], None]


class _Progress:
    """How many loads have ended, of those that were begun; until nobody waits for them."""

    def __init__(self, tell: _Tell) -> None:
        self._tell = tell
        self._is_over = False
        self._num_begun = self._num_ended = 0
        self._started_s = time.perf_counter()

    def follow(self, loads: Sequence[asyncio.Task[Any]]) -> None:
        """Loads that have been begun."""
        self._num_begun += len(loads)
        for load in loads:
            load.add_done_callback(self._ended)
        if loads:
            self._tell_of_phase()

    def _ended(self, load: asyncio.Task[Any]) -> None:
        if self._is_over:
            return
        self._num_ended += 1
        self._tell_of_phase()

    def _tell_of_phase(self) -> None:
        detail = f"{self._num_ended} of {self._num_begun}"
        self._tell(PhaseStarted(_PHASE, detail, self._num_ended / self._num_begun))

    def stop(self) -> None:
        """Tell nothing more."""
        self._is_over = True

    def finish(self) -> None:
        """All is there that is waited for."""
        if self._num_begun:
            self._tell(PhaseFinished(_PHASE, time.perf_counter() - self._started_s))


async def load_first_adapters(
    table: AdapterTable, modules: Sequence[tuple[str, str]], tell: _Tell
) -> None:
    """``modules``: names and sources of the command line's; a name that is remembered has been
    replaced since. Raises the error of the first of them that fails; what else cannot be loaded is
    there, as failed."""
    progress = _Progress(tell)
    await table.restore(progress.follow)
    new = [module for module in modules if module[0] not in table]
    loads = [asyncio.create_task(_load_module(table, *module)) for module in new]
    progress.follow(loads)
    try:
        await asyncio.gather(*loads)
    finally:
        progress.stop()
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
    progress.finish()


async def _load_module(table: AdapterTable, name: str, path: str) -> None:
    with told_of_module(name, path):
        await table.load(name, AdapterSource(path), is_remembered=False)


@contextlib.contextmanager
def told_of_module(name: str, path: str) -> Iterator[None]:
    """Have errors of an adapter say where the command line names it."""
    try:
        yield
    except OctavoError as error:
        kind = type(error)
        raise kind(f"--lora-modules {name}={path}: {error}") from error

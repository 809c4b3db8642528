"""The adapters that a server starts with: those it remembers or shall have, and the command line's.

Read side by side, before any request is taken, and told of as a phase of loading. Torch-free.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from octavo.engine.adapter_table import AdapterTable
from octavo.engine.messages import PhaseFinished, PhaseStarted
from octavo.errors import OctavoError
from octavo.lora.adapter_source import AdapterSource

_PHASE = "adapters"
_Tell = Callable[[PhaseStarted | PhaseFinished], None]
_Load = asyncio.Task[object]


class _Progress:
    """How many loads have ended, of those that were begun."""

    def __init__(self, tell: _Tell) -> None:
        self._tell = tell
        self._num_begun = self._num_ended = 0
        self._started_s = time.perf_counter()

    def follow(self, loads: Sequence[_Load]) -> None:
        """Loads that have been begun."""
        self._num_begun += len(loads)
        for load in loads:
            load.add_done_callback(self._ended)

    def _ended(self, load: _Load) -> None:
        self._num_ended += 1
        detail = f"{self._num_ended} of {self._num_begun}"
        self._tell(PhaseStarted(_PHASE, detail, self._num_ended / self._num_begun))

    def finish(self) -> None:
        """Nothing is waited for any more."""
        if self._num_begun:
            self._tell(PhaseFinished(_PHASE, time.perf_counter() - self._started_s))


async def load_first_adapters(
    table: AdapterTable, modules: Sequence[tuple[str, str]], tell: _Tell
) -> None:
    """``modules``: names and sources of the command line's; a name that is remembered has been
    replaced since. Raises the error of the first of them that cannot be loaded; what else cannot is
    there, as failed."""
    progress = _Progress(tell)
    await table.restore(progress.follow)
    new = [(name, path) for name, path in modules if name not in table]
    loads: list[_Load] = [
        asyncio.create_task(table.load(name, AdapterSource(path), is_remembered=False))
        for name, path in new
    ]
    progress.follow(loads)
    try:
        for (name, path), load in zip(new, loads, strict=True):
            try:
                await load
            except OctavoError as error:
                kind = type(error)
                raise kind(f"--lora-modules {name}={path}: {error}") from error
    finally:
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
    progress.finish()

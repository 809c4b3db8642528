"""Adapters that are loaded, replaced, unloaded and loaded again while requests use them.

Plays the server's side of an engine in this process: the real table of names and generations
(:mod:`octavo.engine.adapter_table`), whose messages go to the engine's core by call instead of
over a socket. Knows adapters and who holds one; nothing of what requests ask. More names than host
memory has entries, and more of those than there are slots, so that all of them take turns.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any

from random_adapters import make_varied_adapters

from octavo.engine.adapter_table import AdapterTable
from octavo.engine.core import EngineCore
from octavo.engine.messages import AdapterFailed, AdapterOpened, CloseAdapter, OpenAdapter, Refused
from octavo.errors import AdapterError, UnknownModelError
from octavo.lora.adapter_source import AdapterSource
from octavo.request import AdapterGeneration

_NUM_VERSIONS = 2
"""Of each name: as many other weights as replace each other."""
_MAX_CHANGES = 3
"""Under way at a time; two may be of one name."""
_MOST_STEPS_BETWEEN = 8
_DECK = ("load", "load", "load", "unload", "unload", "damaged")
"""Changes, dealt in a random order."""
_END_LIMIT_S = 60.0
_FIRST_ALONE = 1_000_000
"""The number of the first generation that is loaded by itself; not one of the table's."""


class AdapterChurn:
    """``turn`` is called once a step."""

    def __init__(
        self, core: EngineCore, model: str, folder: Path, count: int, max_rank: int, seed: int
    ) -> None:
        config = json.loads((Path(model) / "config.json").read_text())
        folders = make_varied_adapters(folder, config, count * _NUM_VERSIONS, max_rank)
        self._versions = {f"adapter-{number}": folders[number::count] for number in range(count)}
        self._damaged = _damaged_copy(Path(folders[0]), folder / "damaged")
        self._core = core
        self._draw = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._table = AdapterTable(self._send, is_enabled=True, wait_s=30.0)
        self._paths: dict[int, str] = {}
        """Of what is being read, by its generation."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._changes: set[asyncio.Task[None]] = set()
        self._deck: list[str] = []
        self._steps_to_next = 0
        self._next_alone = _FIRST_ALONE
        self.folders: dict[str, str] = {}
        """Of every digest that was ever loaded."""
        self.changes: Counter[str] = Counter()
        """What was done to adapters, and how it ended."""
        self.faults: list[str] = []
        self.refusals: dict[str, str] = {}
        """Kind of error by request, of those that the engine refused and that have not ended."""
        # What is damaged is refused, which the table tells the log.
        logging.getLogger("octavo").setLevel(logging.ERROR)

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for an adapter or changes one."""
        return bool(self._tasks or self._changes)

    def load_all(self) -> None:
        """A version of each name, before there is any traffic."""
        for name in self._versions:
            self._keep(self._changes, self._load(name))
        self._turn_until(lambda: not self._changes)

    def resident(self) -> Collection[int]:
        """Generations whose requests can run now."""
        stats = self._core.stats().adapters
        assert stats is not None
        return stats.resident

    def choose(self, resident: Collection[int], *, is_to_run: bool) -> str | None:
        """What a request shall use; None: the base model. ``is_to_run``: something that is on the
        device; else whatever there is, and rarely what is not."""
        draw = self._draw
        if is_to_run:
            entries = [entry for entry in self._table.entries() if entry.current]
            names = [one.name for one in entries if one.current and one.current.id in resident]
            return draw.choice([None, *names])
        if draw.random() < 0.02:
            return draw.choice(list(self._versions))
        return draw.choice([None, *(entry.name for entry in self._table.entries())])

    def begin(self, request: Coroutine[Any, Any, None]) -> None:
        """Carry on with somebody who awaits :meth:`acquire`."""
        self._keep(self._tasks, request)

    async def acquire(self, name: str) -> AdapterGeneration:
        """What the name stands for, as the server's requests get it: it may wait for a load."""
        return await self._table.acquire(name)

    def release(self, adapter: AdapterGeneration) -> None:
        """A request has ended."""
        self._table.release(adapter)

    def turn(self, *, may_change: bool = True) -> None:
        """Hear the engine, change something now and then, and let everyone go on."""
        self._hear()
        self._steps_to_next -= 1
        if may_change and self._steps_to_next <= 0 and len(self._changes) < _MAX_CHANGES:
            self._steps_to_next = self._draw.randint(0, _MOST_STEPS_BETWEEN)
            self._keep(self._changes, self._change(self._draw.choice(list(self._versions))))
        self._loop.run_until_complete(asyncio.sleep(0))

    def finish(self) -> None:
        """Unload everything that nobody uses any more; what is left then has leaked."""
        for entry in self._table.entries():
            self._keep(self._changes, self._unload(entry.name, 1.0))
        self._turn_until(lambda: not self.is_busy)
        self._turn_until(lambda: not self._leaks())
        self.faults += self._leaks()

    def open_alone(self, digest: str) -> AdapterGeneration:
        """Load weights once more, by themselves; :meth:`close_alone` ends it."""
        number = self._next_alone = self._next_alone + 1
        self._core.open_adapter(number, AdapterSource(self.folders[digest], None, digest))
        while True:
            for event in self._core.take_adapter_events():
                if isinstance(event, AdapterFailed):
                    raise AssertionError(f"{self.folders[digest]} was loaded before: {event}")
                return AdapterGeneration(number, digest)
            self._core.step()

    def close_alone(self, adapter: AdapterGeneration) -> None:
        self._core.close_adapter(adapter.id)

    def others(self, digest: str) -> list[str]:
        """Digests of other weights that had the same name; of others where there are none."""
        folder = self.folders[digest]
        (own,) = (versions for versions in self._versions.values() if folder in versions)
        others = [other for other, path in self.folders.items() if path in own]
        return [other for other in others or self.folders if other != digest]

    def close(self) -> None:
        self._loop.close()

    # ---- Between the table and the engine ---------------------------------------------------

    def _send(self, message: OpenAdapter | CloseAdapter) -> None:
        if isinstance(message, CloseAdapter):
            self._core.close_adapter(message.adapter_id)
            return
        self._paths[message.adapter_id] = message.source.path
        self._core.open_adapter(message.adapter_id, message.source, message.known_digest)

    def _hear(self) -> None:
        for event in self._core.take_adapter_events():
            if isinstance(event, Refused):
                self.refusals[event.request_id] = event.kind
                continue
            path = self._paths.pop(event.adapter_id, None)
            if isinstance(event, AdapterOpened) and path is not None:
                known = self.folders.setdefault(event.digest, path)
                if known != path:
                    self.faults.append(f"{path} was read as {known}")
            elif isinstance(event, AdapterFailed) and path != self._damaged:
                self.faults.append(f"{path or 'an adapter in use'} was not read: {event.message}")
            self._table.heard(event)

    def _keep(self, tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        """Until it has ended; none may end with an error."""
        task = self._loop.create_task(work)
        tasks.add(task)

        def end(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if (error := task.exception()) is not None:
                self.faults.append(f"{task} ended with {error!r}")

        task.add_done_callback(end)

    # ---- Changes ----------------------------------------------------------------------------

    async def _change(self, name: str) -> None:
        if not self._deck:
            self._deck = self._draw.sample(_DECK, len(_DECK))
        change = self._deck.pop()
        if change == "unload" and name in self._table:
            await self._unload(name, self._draw.choice([0.01, 1.0, 30.0]))
        elif change == "damaged":
            await self._load_damaged(name)
        else:
            await self._load(name)

    async def _load(self, name: str) -> None:
        before, versions = self._current(name), self._versions[name]
        if before is not None and self._draw.random() < 0.8:
            versions = [path for path in versions if path != self.folders[before]]
        path = self._draw.choice(versions)
        source, is_lazy = AdapterSource(path), self._draw.random() < 0.1
        try:
            await self._table.load(name, source, is_lazy=is_lazy)
        except UnknownModelError:
            self.changes["unloaded while it was loaded"] += 1
            return
        after = self._current(name)
        if after is None or before is None:
            self.changes["loaded"] += 1
        else:
            self.changes["unchanged" if after == before else "replaced"] += 1
        if after is not None and self.folders[after] not in self._versions[name]:
            self.faults.append(f"{name} stands for {self.folders[after]}")

    async def _load_damaged(self, name: str) -> None:
        try:
            await self._table.load(name, AdapterSource(self._damaged))
            self.faults.append("a damaged adapter was loaded")
        except AdapterError:
            self.changes["refused"] += 1
        except UnknownModelError:
            self.changes["unloaded while it was loaded"] += 1

    async def _unload(self, name: str, timeout_s: float) -> None:
        try:
            num_late = await self._table.unload(name, timeout_s)
        except UnknownModelError:
            return  # somebody else was faster
        self.changes["unloaded with requests" if num_late else "unloaded"] += 1

    def _current(self, name: str) -> str | None:
        entry = self._table.offered_entry(name)
        return entry.current.digest if entry and entry.current else None

    # ---- The end ----------------------------------------------------------------------------

    def _turn_until(self, is_over: Callable[[], bool]) -> None:
        """Steps and turns, so long as it may take."""
        deadline_s = time.monotonic() + _END_LIMIT_S
        while not is_over() and time.monotonic() < deadline_s:
            self._core.step()
            self.turn(may_change=False)
            time.sleep(0.001)

    def _leaks(self) -> list[str]:
        stats = self._core.stats().adapters
        assert stats is not None
        left = {
            "names": [entry.name for entry in self._table.entries()],
            "generations whose requests have not ended": self._table.draining(),
            "slots": stats.resident,
            "host entries": stats.in_host_memory,
            "adapters waited for": stats.waiting,
            "adapters in use": stats.running,
            "waits and changes": [*self._tasks, *self._changes],
        }
        return [f"{what} left at the end: {which}" for what, which in left.items() if which]


def _damaged_copy(adapter: Path, folder: Path) -> str:
    """The same, cut short."""
    folder.mkdir()
    config, weights = "adapter_config.json", "adapter_model.safetensors"
    (folder / config).write_bytes((adapter / config).read_bytes())
    (folder / weights).write_bytes((adapter / weights).read_bytes()[:-100])
    return str(folder)

"""Names of LoRA adapters in the server's process: which generation each stands for, who uses it.

A load makes a new generation in the engine's process; when it is there the name is flipped to
it, and the one before is forgotten as soon as its last request has ended. So requests of one
generation never meet another's weights, and no load makes a request fail. Torch-free.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from octavo.engine.carried_errors import from_adapter_failure
from octavo.engine.messages import AdapterFailed, AdapterOpened, CloseAdapter, OpenAdapter
from octavo.errors import (
    AdapterError,
    AdapterNotReadyError,
    EngineDeadError,
    OctavoError,
    UnknownModelError,
)
from octavo.logs import log_event
from octavo.metrics import Histogram
from octavo.request import AdapterGeneration

_log = logging.getLogger(__name__)
_RETRY_AFTER_S = 5.0
_LOAD_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class AdapterState(enum.StrEnum):
    """Where a name stands."""

    KNOWN = "known"
    """It is loaded when first asked for."""
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    """The last attempt failed; the next request makes another."""


@dataclass(slots=True)
class Generation:
    """Weights that were loaded once."""

    id: int
    digest: str
    rank: int
    size_bytes: int
    base_model: str | None
    num_open: int = 0
    """Requests that use it."""
    is_retired: bool = False
    is_idle: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class AdapterEntry:
    """A name that requests may use."""

    name: str
    path: str
    current: Generation | None = None
    load: asyncio.Task[Generation] | None = None
    """Under way, if any."""
    error: str | None = None
    """Why the last attempt failed."""

    @property
    def state(self) -> AdapterState:
        if self.current is not None:
            return AdapterState.READY
        if self.load is not None:
            return AdapterState.LOADING
        return AdapterState.KNOWN if self.error is None else AdapterState.FAILED


class AdapterTable:
    """Lives in one event loop. ``send`` takes messages to the engine."""

    def __init__(
        self, send: Callable[[OpenAdapter | CloseAdapter], None], *, is_enabled: bool, wait_s: float
    ) -> None:
        self._send = send
        self._wait_s = wait_s
        self.is_enabled = is_enabled
        self.load_seconds = Histogram(
            "octavo_lora_load_seconds", "From an adapter's files to host memory.", _LOAD_BUCKETS
        )
        self.outcomes = {"loaded": 0, "unchanged": 0, "failed": 0}
        """How loads ended."""
        self._ids = itertools.count(1)
        self._entries: dict[str, AdapterEntry] = {}
        self._pending: dict[int, asyncio.Future[AdapterOpened]] = {}
        self._generations: dict[int, tuple[str, Generation]] = {}
        """All that the engine knows, with the name each was loaded under."""

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def entries(self) -> list[AdapterEntry]:
        """In the order they were first named."""
        return list(self._entries.values())

    def draining(self) -> list[tuple[str, Generation]]:
        """Generations that no name stands for any more, whose requests are still running."""
        return [(name, one) for name, one in self._generations.values() if one.is_retired]

    def name_of(self, generation: int) -> str:
        """For metrics; its number where it is not known."""
        known = self._generations.get(generation)
        return str(generation) if known is None else known[0]

    # ---- Requests ---------------------------------------------------------------------------

    async def acquire(self, name: str) -> AdapterGeneration:
        """What a request shall use; :meth:`release` it afterwards.

        Waits for a load, and begins it where nobody has. Raises UnknownModelError, or
        AdapterNotReadyError when it takes too long or fails.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownModelError(f"There is no adapter {name!r:.200} here.", "model")
        if entry.current is None:
            await self._wait_for(entry)
        generation = entry.current
        assert generation is not None
        generation.num_open += 1
        generation.is_idle.clear()
        return AdapterGeneration(generation.id, generation.digest)

    def release(self, adapter: AdapterGeneration) -> None:
        """A request has ended."""
        known = self._generations.get(adapter.id)
        if known is None:
            return  # it was unloaded before its last request had ended
        _, generation = known
        generation.num_open -= 1
        if not generation.num_open:
            generation.is_idle.set()
            if generation.is_retired:
                self._forget(generation)

    async def _wait_for(self, entry: AdapterEntry) -> None:
        load = entry.load or self._begin(entry, entry.path)
        try:
            await asyncio.wait_for(asyncio.shield(load), self._wait_s)
        except TimeoutError:
            raise AdapterNotReadyError(
                f"The adapter {entry.name!r:.200} was not loaded within {self._wait_s:.0f} s; it "
                "is still being loaded, try again.",
                _RETRY_AFTER_S,
            ) from None
        except EngineDeadError:
            raise
        except OctavoError as error:
            raise AdapterNotReadyError(
                f"The adapter {entry.name!r:.200} cannot be loaded: {error}", _RETRY_AFTER_S
            ) from error

    # ---- Administration ---------------------------------------------------------------------

    def announce(self, name: str, path: str) -> AdapterEntry:
        """Make a name known; it is loaded when first asked for."""
        self._check_enabled()
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = AdapterEntry(name, path)
        elif entry.current is None and entry.load is None:
            entry.path, entry.error = path, None
        return entry

    async def load(self, name: str, path: str) -> AdapterEntry:
        """Load an adapter, or what is there now of one that is; the name is flipped at the end.

        Raises AdapterError or ModelLoadError; then a name that stood for something still does.
        """
        self._check_enabled()
        entry = self._entries.get(name)
        is_new = entry is None
        if entry is None:
            entry = self._entries[name] = AdapterEntry(name, path)
        while entry.load is not None:  # one after another
            await asyncio.wait([entry.load])
        try:
            # A client that leaves does not end what others may wait for.
            await asyncio.shield(self._begin(entry, path))
        except OctavoError:
            if is_new and entry.current is None and self._entries.get(name) is entry:
                del self._entries[name]
            raise
        return entry

    async def unload(self, name: str, timeout_s: float) -> int:
        """Forget a name at once, and its weights when its requests have ended.

        Those that have not by ``timeout_s`` end with an error; returns how many.
        """
        entry = self._entries.pop(name, None)
        if entry is None:
            raise UnknownModelError(f"There is no adapter {name!r:.200} here.", "lora_name")
        if entry.load is not None:
            await asyncio.wait([entry.load])
        generation = entry.current
        if generation is None:
            return 0
        self._retire(generation)
        try:
            if generation.num_open:
                await asyncio.wait_for(generation.is_idle.wait(), timeout_s)
        except TimeoutError:
            num_late = generation.num_open
            self._forget(generation)
            return num_late
        return 0

    def heard(self, message: AdapterOpened | AdapterFailed) -> None:
        """The engine's word on a load."""
        future = self._pending.pop(message.adapter_id, None)
        if future is None or future.done():
            return
        if isinstance(message, AdapterOpened):
            future.set_result(message)
        else:
            future.set_exception(from_adapter_failure(message))

    def engine_died(self, error: EngineDeadError) -> None:
        """No load will end any more."""
        for future in self._pending.values():
            if not future.done():
                future.set_exception(error)
        self._pending.clear()

    # ---- Inside -----------------------------------------------------------------------------

    def _check_enabled(self) -> None:
        if not self.is_enabled:
            raise AdapterError("This server takes no adapters; start it with --enable-lora.")

    def _begin(self, entry: AdapterEntry, path: str) -> asyncio.Task[Generation]:
        entry.load = asyncio.create_task(self._load(entry, path))
        # Whoever waits hears of an error; if nobody does any more, the entry tells.
        entry.load.add_done_callback(lambda task: task.cancelled() or task.exception())
        return entry.load

    async def _load(self, entry: AdapterEntry, path: str) -> Generation:
        before, id_ = entry.current, next(self._ids)
        future = self._pending[id_] = asyncio.get_running_loop().create_future()
        try:
            self._send(OpenAdapter(id_, path, None if before is None else before.digest))
            opened = await future
        except OctavoError as error:
            self.outcomes["failed"] += 1
            entry.error = str(error)
            _log.warning("Adapter %r is not loaded: %s", entry.name, error)
            raise
        finally:
            entry.load = None
            self._pending.pop(id_, None)
        entry.path, entry.error = path, None
        if opened.is_known:
            assert before is not None
            self.outcomes["unchanged"] += 1
            return before
        self.outcomes["loaded"] += 1
        self.load_seconds.observe(opened.seconds)
        generation = Generation(
            id_, opened.digest, opened.rank, opened.size_bytes, opened.base_model
        )
        self._generations[id_] = (entry.name, generation)
        entry.current = generation
        if before is not None:
            self._retire(before)
        log_event(_log, "adapter_ready", name=entry.name, generation=id_, digest=opened.digest)
        return generation

    def _retire(self, generation: Generation) -> None:
        generation.is_retired = True
        if not generation.num_open:
            self._forget(generation)

    def _forget(self, generation: Generation) -> None:
        if self._generations.pop(generation.id, None) is not None:
            self._send(CloseAdapter(generation.id))

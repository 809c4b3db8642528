"""Names of LoRA adapters in the server's process: which generation each stands for, who uses it.

A load makes a new generation in the engine's process; when it is there the name is flipped to
it, and the one before is forgotten as soon as its last request has ended. So requests of one
generation never meet another's weights, and no load makes a request fail. Torch-free.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from octavo.engine.adapter_entry import AdapterEntry, Generation
from octavo.engine.adapter_hold import AdapterHold
from octavo.engine.adapter_openings import AdapterOpenings
from octavo.engine.adapter_state import AdapterStateFile, RememberedAdapter
from octavo.engine.messages import AdapterFailed, AdapterOpened, CloseAdapter, OpenAdapter
from octavo.errors import (
    AdapterError,
    AdapterNotReadyError,
    AdapterRefusedError,
    EngineDeadError,
    InvalidRequestError,
    OctavoError,
    UnknownModelError,
)
from octavo.logs import log_event
from octavo.lora.adapter_name import check_adapter_name
from octavo.lora.adapter_source import AdapterSource
from octavo.metrics.families import Histogram
from octavo.request import AdapterGeneration

_log = logging.getLogger(__name__)
_RETRY_AFTER_S = 5.0
_LOAD_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class AdapterTable:
    """Lives in one event loop. ``send`` takes messages to the engine."""

    def __init__(
        self,
        send: Callable[[OpenAdapter | CloseAdapter], None],
        *,
        is_enabled: bool,
        wait_s: float,
        state_file: AdapterStateFile | None = None,
        wanted_file: AdapterStateFile | None = None,
    ) -> None:
        self._send = send
        self._wait_s = wait_s
        self._state_file = state_file
        self._wanted_file = wanted_file
        self.hold = AdapterHold()
        """Whether readiness waits for the word that no adapter is missing."""
        self.is_enabled = is_enabled
        self.load_seconds = Histogram(
            "octavo_lora_load_seconds", "From an adapter's files to host memory.", _LOAD_BUCKETS
        )
        self.outcomes = {"loaded": 0, "unchanged": 0, "failed": 0}
        """How loads ended."""
        self._openings = AdapterOpenings(send)
        self._entries: dict[str, AdapterEntry] = {}
        self._generations: dict[int, tuple[AdapterEntry, Generation]] = {}
        """All that the engine knows, with the entry that each was loaded for."""
        self._writing = asyncio.Lock()
        self._has_changed = False
        """Whether there is something to remember that nobody has begun to write."""

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def offered_entry(self, name: str) -> AdapterEntry | None:
        """One that requests may use."""
        entry = self._entries.get(name)
        return entry if entry is not None and entry.is_offered else None

    def entries(self) -> list[AdapterEntry]:
        """In the order they were first named."""
        return list(self._entries.values())

    def offered(self) -> list[AdapterEntry]:
        """Those that requests may use."""
        return [entry for entry in self._entries.values() if entry.is_offered]

    def check_offered(self, name: str) -> None:
        """Raise AdapterRefusedError for a name whose files cannot be served."""
        entry = self._entries.get(name)
        if entry is not None and not entry.is_offered:
            raise _refusal(entry)

    def draining(self) -> list[tuple[str, Generation]]:
        """Generations that no name stands for any more, whose requests are still running."""
        used = self._generations.values()
        return [(entry.name, one) for entry, one in used if one.is_retired]

    def name_of(self, generation: int) -> str:
        """For metrics; its number where it is not known."""
        known = self._generations.get(generation)
        return str(generation) if known is None else known[0].name

    # ---- Requests ---------------------------------------------------------------------------

    async def acquire(self, name: str) -> AdapterGeneration:
        """What a request shall use; :meth:`release` it afterwards.

        Waits for a load, and begins it where nobody has. Raises UnknownModelError (of its kinds
        AdapterRefusedError for files that cannot be served), or AdapterNotReadyError when it takes
        too long or fails.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownModelError(f"There is no adapter {name!r:.200} here.", "model")
        if entry.current is None:
            await self._wait_for(entry)
        if not self._is_there(entry):
            raise _unloaded(name)
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
        pause_s = entry.retry_at_s - asyncio.get_running_loop().time()
        if entry.load is None and entry.error is not None and pause_s > 0:
            raise _why_not(entry, pause_s)
        load = entry.load or self._begin_again(entry)
        try:
            async with asyncio.timeout(self._wait_s):
                await _until_either(load, entry.is_unloaded)
        except TimeoutError:
            raise AdapterNotReadyError(
                f"The adapter {entry.name!r:.200} was not loaded within {self._wait_s:g} s; it "
                "is still being loaded, try again.",
                _RETRY_AFTER_S,
            ) from None
        except (EngineDeadError, UnknownModelError):
            raise
        except OctavoError as error:
            raise _why_not(entry, _RETRY_AFTER_S) from error

    # ---- Administration ---------------------------------------------------------------------

    async def load(
        self,
        name: str,
        source: AdapterSource,
        timeout_s: float | None = None,
        *,
        is_lazy: bool = False,
        is_remembered: bool = True,
    ) -> AdapterEntry:
        """Load an adapter, or what is there now of one that is; the name is flipped at the end.

        ``is_lazy``: a name that stands for nothing is only made known, and loaded when first
        asked for. Returns the name as this load has left it, whatever others have made of it since.
        Raises AdapterError, ModelLoadError or, for the name, InvalidRequestError; then a name that
        stood for something still does. AdapterNotReadyError after ``timeout_s``: the load goes on.
        """
        if not self.is_enabled:
            raise AdapterError("This server takes no adapters; start it with --enable-lora.")
        check_adapter_name(name)
        load = asyncio.create_task(self._load_in_turn(name, source, is_lazy, is_remembered))
        # Whoever waits hears of an error; if nobody does any more, the entry tells.
        load.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async with asyncio.timeout(timeout_s):
                # A client that leaves does not end what others may wait for, nor loses its turn.
                return await asyncio.shield(load)
        except TimeoutError:
            if name in self._entries:
                self._entries[name].is_promised = True
            raise AdapterNotReadyError(
                f"The adapter {name!r:.200} was not loaded within {timeout_s:g} s; loading goes "
                "on, ask again.",
                _RETRY_AFTER_S,
            ) from None

    async def restore(
        self, begun: Callable[[Sequence[asyncio.Task[Generation]]], None] = lambda loads: None
    ) -> None:
        """Load what the state file remembers; where there is none yet what a new server shall
        have, which then is on hold. Waits no longer than a request would.

        ``begun`` is told of the loads. What cannot be loaded is there, as failed.
        """
        is_new = self._is_new()
        loads = []
        for one in self._read_memory(is_new):
            try:
                check_adapter_name(one.name)
            except InvalidRequestError as error:
                _log.error("An adapter is not restored: %s", error)
                continue
            entry = AdapterEntry(
                one.name, one.source, one.lazy, is_remembered=True, is_promised=True
            )
            self._entries[one.name] = entry
            if not one.lazy:
                loads.append(self._begin_again(entry))
        begun(loads)
        if loads:
            await asyncio.wait(loads, timeout=self._wait_s)
        if is_new:
            await self._remember()
            self.hold.begin()

    def remembered_names(self) -> set[str]:
        """Those that :meth:`restore` will make known."""
        return {one.name for one in self._read_memory(self._is_new())}

    async def unload(self, name: str, timeout_s: float) -> int:
        """Forget a name at once, and its weights when its requests have ended.

        Those that have not by ``timeout_s`` are ended, also those of versions before; returns how
        many. A load under way comes to nothing.
        """
        entry = self._entries.pop(name, None)
        if entry is None:
            raise UnknownModelError(f"There is no adapter {name!r:.200} here.", "lora_name")
        entry.is_unloaded.set()
        if entry.current is not None:
            self._retire(entry.current)
        used = [one for owner, one in self._generations.values() if owner is entry]
        await self._remember()
        try:
            async with asyncio.timeout(timeout_s):
                for one in used:
                    await one.is_idle.wait()
        except TimeoutError:
            late = [one for one in used if one.num_open]
            for one in late:
                self._forget(one)
            return sum(one.num_open for one in late)
        return 0

    def heard(self, message: AdapterOpened | AdapterFailed) -> None:
        """The engine's word on a load."""
        if not self._openings.heard(message):
            self._heard_again(message)

    def engine_died(self, error: EngineDeadError) -> None:
        """No load will end any more."""
        self._openings.engine_died(error)

    # ---- Inside -----------------------------------------------------------------------------

    def _is_new(self) -> bool:
        """Whether this server is told what it shall have, as it remembers nothing."""
        state = self._state_file
        return self._wanted_file is not None and (state is None or not state.exists())

    def _read_memory(self, is_new: bool) -> list[RememberedAdapter]:
        source = self._wanted_file if is_new else self._state_file
        return [] if source is None else source.read()

    async def _load_in_turn(
        self, name: str, source: AdapterSource, is_lazy: bool, is_remembered: bool
    ) -> AdapterEntry:
        """Loads of one name follow each other, and each finds what the one before has left."""
        while (entry := self._entries.get(name)) is not None and entry.load is not None:
            await asyncio.wait([entry.load])
        if entry is None:
            # Who knows the digest knows that it is somewhere: requests are to try again, not to go.
            is_promised = source.digest is not None
            entry = AdapterEntry(name, source, is_lazy, is_remembered, is_promised)
            self._entries[name] = entry
        if entry.stands_for(source) or (is_lazy and entry.can_wait_with(source)):
            if entry.current is None:
                entry.source = source
            entry.succeeded()
            left = replace(entry)
            await self._settle(entry, is_lazy, is_remembered)
            return left
        generation = await self._begin(entry, source, is_lazy, is_remembered)
        return replace(entry, source=source, current=generation, error=None)

    def _heard_again(self, message: AdapterOpened | AdapterFailed) -> None:
        """Of weights that had left memory: whether their files could be read when needed."""
        known = self._generations.get(message.adapter_id)
        if known is None:
            return
        entry, generation = known
        generation.error = message.message if isinstance(message, AdapterFailed) else None
        if generation.error is None and entry.current is generation:
            entry.error = None

    def _begin(
        self, entry: AdapterEntry, source: AdapterSource, is_lazy: bool, is_remembered: bool
    ) -> asyncio.Task[Generation]:
        entry.load = asyncio.create_task(self._load(entry, source, is_lazy, is_remembered))
        # Whoever waits hears of an error; if nobody does any more, the entry tells.
        entry.load.add_done_callback(lambda task: task.cancelled() or task.exception())
        return entry.load

    def _begin_again(self, entry: AdapterEntry) -> asyncio.Task[Generation]:
        return self._begin(entry, entry.source, entry.is_lazy, entry.is_remembered)

    async def _load(
        self, entry: AdapterEntry, source: AdapterSource, is_lazy: bool, is_remembered: bool
    ) -> Generation:
        before = entry.current
        digest = None if before is None else before.digest
        try:
            opened = await self._openings.open(source, digest, lambda: self._is_there(entry))
        except OctavoError as error:
            self.outcomes["failed"] += 1
            entry.failed(error, source, asyncio.get_running_loop().time() + _RETRY_AFTER_S)
            if not entry.is_promised and self._is_there(entry):
                del self._entries[entry.name]
            _log.warning("Adapter %r is not loaded: %s", entry.name, error)
            raise
        finally:
            entry.load = None
        if opened is None or not self._is_there(entry):
            if opened is not None and not opened.is_known:
                self._send(CloseAdapter(opened.adapter_id))
            raise _unloaded(entry.name)
        generation = before if opened.is_known else self._made(entry, opened)
        assert generation is not None
        entry.source, entry.current = source, generation
        entry.succeeded()
        generation.revision, generation.error = opened.revision, None
        self.outcomes["unchanged" if opened.is_known else "loaded"] += 1
        if before is not None and before is not generation:
            self._retire(before)
        await self._settle(entry, is_lazy, is_remembered)
        return generation

    def _is_there(self, entry: AdapterEntry) -> bool:
        """Whether its name has not been unloaded."""
        return self._entries.get(entry.name) is entry

    def _made(self, entry: AdapterEntry, opened: AdapterOpened) -> Generation:
        self.load_seconds.observe(opened.seconds)
        generation = Generation(
            opened.adapter_id, opened.digest, opened.rank, opened.size_bytes, opened.base_model
        )
        self._generations[generation.id] = (entry, generation)
        log_event(
            _log,
            "adapter_ready",
            name=entry.name,
            generation=generation.id,
            rank=opened.rank,
            size_bytes=opened.size_bytes,
            seconds=round(opened.seconds, 3),
            digest=opened.digest,
        )
        return generation

    async def _settle(self, entry: AdapterEntry, is_lazy: bool, is_remembered: bool) -> None:
        entry.is_lazy, entry.is_remembered, entry.is_promised = is_lazy, is_remembered, True
        await self._remember()

    async def _remember(self) -> None:
        """Return when what is there now outlives a restart. A disk takes its time, and everybody's
        tokens pass through this loop: it is written beside it, once for all who ask meanwhile."""
        if self._state_file is None:
            return
        self._has_changed = True
        async with self._writing:
            if self._has_changed:
                self._has_changed = False
                entries = [entry for entry in self._entries.values() if entry.is_lasting]
                remembered = [entry.remembered() for entry in entries]
                await asyncio.to_thread(self._state_file.write, remembered)

    def _retire(self, generation: Generation) -> None:
        generation.is_retired = True
        if not generation.num_open:
            self._forget(generation)

    def _forget(self, generation: Generation) -> None:
        if self._generations.pop(generation.id, None) is not None:
            self._send(CloseAdapter(generation.id))


async def _until_either(load: asyncio.Task[Generation], event: asyncio.Event) -> None:
    """Raises what the load does, if that is what came."""
    is_set = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({load, is_set}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_set.cancel()
    if load.done():
        load.result()


def _why_not(entry: AdapterEntry, retry_after_s: float) -> OctavoError:
    """For whoever may use it. What is wrong with the files they may know; why they cannot be had
    names places on this machine, and is told administrators."""
    if entry.is_refused:
        return _refusal(entry)
    return AdapterNotReadyError(
        f"The adapter {entry.name!r:.200} cannot be loaded now; GET /v1/adapters tells "
        "administrators why. Try again later.",
        retry_after_s,
    )


def _refusal(entry: AdapterEntry) -> AdapterRefusedError:
    """What a request is told of an adapter that is refused."""
    reason = f"The adapter {entry.name!r:.200} cannot be served by this model: {entry.error}"
    return AdapterRefusedError(reason, "model")


def _unloaded(name: str) -> UnknownModelError:
    return UnknownModelError(f"{name!r:.200} was unloaded meanwhile.", "model")

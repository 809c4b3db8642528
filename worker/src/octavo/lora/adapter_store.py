"""Adapters' way: from files to a cache in host memory, and from there to slots of the device.

Files are fetched, read, checked and converted by threads, away from the engine's loop: by several,
so that a source or a file system that does not answer holds no other up; and by others for new
adapters than for those that were dropped from host memory, which wait for no network unless their
folder is gone. A copy from the host's (pinned) memory to a slot runs on a stream of its own, beside
the steps. The loop calls everything else here and waits for no thread: :meth:`AdapterStore.poll`
tells what has ended, and :meth:`AdapterStore.when_done` has the loop woken for it. Decides nothing
about slots (:mod:`octavo.scheduler.adapter_slots` does) nor about who stays in host memory
(:mod:`octavo.lora.host_cache`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from octavo.errors import AdapterChangedError, ModelLoadError, OctavoError
from octavo.kernels.adapters import AdapterStack
from octavo.lora.adapter_folder import AdapterFiles, read_adapter, weight_bytes
from octavo.lora.adapter_source import AdapterSource, find_adapter
from octavo.lora.adapter_weights import lay_out
from octavo.lora.host_cache import HostCache, largest_file_bytes
from octavo.lora.outcomes import Filled, FillFailed, Opened, OpenFailed, Outcome
from octavo.lora.reader_threads import AT_A_TIME, ReaderThreads
from octavo.lora.reading_turns import ReadingTurns, most_bytes_counted

_log = logging.getLogger(__name__)
_STOP_LIMIT_S = 5.0
_END_LIMIT_S = 0.5
"""For threads that wait for nothing: those of a kind together."""


@dataclass(slots=True)
class _Record:
    """What is known of an adapter's files."""

    source: AdapterSource
    folder: Path | None = None
    """Where the files were found."""
    revision: str | None = None
    digest: str = ""
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class _Job:
    """For a thread: read an adapter, then perhaps fill a slot."""

    adapter_id: int
    slot: int | None = None
    known_digest: str | None = None


@dataclass(slots=True)
class _Copy:
    """Under way from a host entry to a slot."""

    adapter_id: int
    slot: int
    entry: int
    event: torch.cuda.Event

    @property
    def is_done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]


class AdapterStore:
    """Adapters by id. All methods are the loop's."""

    def __init__(
        self, stack: AdapterStack, num_host_entries: int, download_dir: str | None = None
    ) -> None:
        self._stack = stack
        self._download_dir = download_dir
        self._cache = HostCache(stack, num_host_entries)
        self._stream: torch.cuda.Stream | None = None
        if stack.b.is_cuda:
            self._stream = torch.cuda.Stream(stack.b.device)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        """Guards the records, which the threads also change."""
        self._turns = ReadingTurns()
        """At having an adapter's files in memory."""
        self._converting = threading.Lock()
        """One adapter at a time is converted: more would take the interpreter from the loop. Never
        held while files are read."""
        self._records: dict[int, _Record] = {}
        self._copies: list[_Copy] = []
        self._outcomes: deque[Outcome] = deque()
        self._read: deque[_Job] = deque()
        """Jobs whose adapter is in host memory again and whose slot can be filled."""
        self._wake: Callable[[], None] | None = None
        self._is_stopping = False
        self._openings = ReaderThreads(self._run, "adapter-reader")
        self._rereads = ReaderThreads(self._run, "adapter-rereader")

    @property
    def num_evictions(self) -> int:
        """Adapters dropped from host memory."""
        return self._cache.num_evictions

    def when_done(self, wake: Callable[[], None]) -> None:
        """Have ``wake`` called, by threads, when :meth:`poll` has something to take in."""
        self._wake = wake

    @property
    def is_busy(self) -> bool:
        """Whether :meth:`poll` has something to take in, or a copy is under way: not while threads
        read files, which may take as long as a source likes."""
        return bool(self._read or self._outcomes or self._copies)

    @property
    def is_reading(self) -> bool:
        """Whether threads read files or convert them: not those that wait for a network, nor for
        a file system that does not answer."""
        return self._turns.are_taken

    def open(self, adapter_id: int, source: AdapterSource, known_digest: str | None = None) -> None:
        """Begin to read an adapter; ends with :class:`Opened` or :class:`OpenFailed`.

        ``known_digest``: if that is what the files have, they are not kept.
        """
        with self._lock:
            assert adapter_id not in self._records, f"adapter {adapter_id} is open"
            self._records[adapter_id] = _Record(source)
        self._openings.put(_Job(adapter_id, known_digest=known_digest))

    def fill(self, adapter_id: int, slot: int) -> None:
        """Begin to copy an adapter to a slot; ends with :class:`Filled` or :class:`FillFailed`.

        The slot's last use must have been launched: the copy runs after what is queued on the
        current stream now.
        """
        with self._lock:
            record = self._records[adapter_id]
            assert record.is_open, f"adapter {adapter_id} is not open"
        self._copy(adapter_id, slot)

    def keep(self, adapter_ids: Collection[int]) -> None:
        """See :meth:`.host_cache.HostCache.keep`."""
        self._cache.keep(adapter_ids)

    def close(self, adapter_id: int) -> None:
        """Forget an adapter; nothing more is heard of it."""
        with self._lock:
            self._records.pop(adapter_id, None)
        self._cache.forget(adapter_id)

    def poll(self) -> list[Outcome]:
        """What has ended since last asked."""
        while self._read:
            job = self._read.popleft()
            assert job.slot is not None
            self._copy(job.adapter_id, job.slot)
        for copy in [copy for copy in self._copies if copy.is_done]:
            self._copies.remove(copy)
            self._cache.release(copy.entry)
            self._outcomes.append(Filled(copy.adapter_id, copy.slot))
        outcomes = []
        while self._outcomes:
            outcomes.append(self._outcomes.popleft())
        return outcomes

    def wait_for_copy(self) -> None:
        """Until the oldest copy has ended, if any is under way."""
        if self._copies:
            self._copies[0].event.synchronize()

    def in_host_memory(self) -> list[int]:
        """Ids of adapters that need not be read again."""
        return self._cache.adapters()

    def check_integrity(self) -> None:
        """Raise AssertionError if an entry of host memory is lost; tells nothing while one is
        written."""
        if self._converting.acquire(blocking=False):
            try:
                self._cache.check_integrity({copy.entry for copy in self._copies})
            finally:
                self._converting.release()

    def shut_down(self) -> None:
        """End the threads; may be called twice. One that waits for a network or a file is left
        behind: it touches nothing more."""
        self._is_stopping = True
        self._cache.stop()
        for threads in (self._rereads, self._openings):
            threads.stop()
        if self._converting.acquire(timeout=_STOP_LIMIT_S):  # nothing is being written any more
            self._converting.release()
        # Idle threads end now, not while the interpreter does.
        for threads in (self._rereads, self._openings):
            threads.join(_END_LIMIT_S)

    # ---- Copies (the loop) ------------------------------------------------------------------

    @torch.inference_mode()
    def _copy(self, adapter_id: int, slot: int) -> None:
        """From host memory, or once it has been read into it (again)."""
        if adapter_id not in self._records:
            return  # closed meanwhile
        held = self._cache.hold(adapter_id)
        if held is None:
            self._rereads.put(_Job(adapter_id, slot))
            return
        if self._stream is None:
            self._stack.write(slot, held.adapter)
            self._cache.release(held.entry)
            self._outcomes.append(Filled(adapter_id, slot))
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stack.b.device))
        with torch.cuda.stream(self._stream):
            self._stack.write(slot, held.adapter)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        self._copies.append(_Copy(adapter_id, slot, held.entry, event))

    # ---- Files (the threads) ----------------------------------------------------------------

    def _run(self, job: _Job) -> None:
        try:
            outcome = self._carry_out(job)
        except OctavoError as error:
            outcome = self._failed(job, error)
        except Exception as error:  # the thread's edge: one bad adapter harms no other
            _log.exception("Adapter %d cannot be read", job.adapter_id)
            reason = f"{type(error).__name__}: {error}"
            outcome = self._failed(job, ModelLoadError(f"It cannot be read ({reason})."))
        if outcome is not None:
            self._outcomes.append(outcome)
        if self._wake is not None:
            self._wake()

    def _carry_out(self, job: _Job) -> Outcome | None:
        started = time.perf_counter()
        with self._lock:
            record = self._records.get(job.adapter_id)
        if record is None:
            return None  # closed meanwhile
        folder, opened = self._find(record), None
        with self._turns.turn(weight_bytes(folder)):
            if self._is_to_be_read(job, record):
                opened = self._read_in(job, record, folder, started)
        if opened is not None and opened.is_known:
            return opened
        if not self._is_needed(job, record):
            self._cache.forget(job.adapter_id)
            return None
        if job.slot is None:
            return opened
        self._read.append(job)
        return None

    def _is_needed(self, job: _Job, record: _Record) -> bool:
        return not self._is_stopping and self._records.get(job.adapter_id) is record

    def _is_to_be_read(self, job: _Job, record: _Record) -> bool:
        """Unless it is in host memory already: two requests asked for it."""
        return self._is_needed(job, record) and job.adapter_id not in self._cache

    def _find(self, record: _Record) -> Path:
        """Where its files lie: where they were, if they still do."""
        if record.folder is not None and record.folder.is_dir():
            return record.folder
        source = record.source
        if record.is_open:
            source = source.pinned(record.revision, record.digest)
        found = find_adapter(source, self._download_dir)
        record.folder, record.revision = found.folder, found.revision
        return found.folder

    def _read_in(self, job: _Job, record: _Record, folder: Path, started: float) -> Opened | None:
        limits = largest_file_bytes(self._stack), self._stack.max_rank
        files = read_adapter(folder, *limits, partial(_check_digest, record))
        with self._converting:
            if not self._is_to_be_read(job, record):  # any more
                return None
            return self._convert(job, record, files, started)

    def _convert(self, job: _Job, record: _Record, files: AdapterFiles, started: float) -> Opened:
        record.digest = files.digest
        if files.digest == job.known_digest:
            return self._known_again(job.adapter_id, record)
        weights = lay_out(files, self._stack.projections, self._stack.max_rank)
        del files
        self._cache.put(job.adapter_id, weights)
        record.is_open = True
        layout = weights.layout
        return Opened(
            job.adapter_id,
            weights.digest,
            layout.rank,
            layout.packing.size * self._cache.bytes_per_number,
            time.perf_counter() - started,
            layout.base_model,
            record.revision,
        )

    def _known_again(self, adapter_id: int, record: _Record) -> Opened:
        """What was read is there already; if it must be read again, then from here."""
        with self._lock:
            for other in self._records.values():
                if other.is_open and other.digest == record.digest:
                    other.source, other.folder = record.source, record.folder
                    other.revision = record.revision
        self.close(adapter_id)
        digest, revision = record.digest, record.revision
        return Opened(adapter_id, digest, 0, 0, 0.0, None, revision, is_known=True)

    def _failed(self, job: _Job, error: OctavoError) -> Outcome:
        if job.slot is not None:
            return FillFailed(job.adapter_id, job.slot, error)
        self.close(job.adapter_id)
        return OpenFailed(job.adapter_id, error)


def most_bytes_read(stack: AdapterStack) -> int:
    """Host memory that files may take while they are read, beside what they are read into."""
    return most_bytes_counted(2 * AT_A_TIME, largest_file_bytes(stack))


def _check_digest(record: _Record, digest: str) -> None:
    """What was loaded must still be there; what was asked for must be there at all."""
    if record.is_open and digest != record.digest:
        raise AdapterChangedError(
            f"The adapter's files in {record.folder} are no longer those that were loaded; load "
            "it again to serve what is there now."
        )
    expected = record.source.digest
    if expected is not None and digest != expected:
        raise AdapterChangedError(
            f"The adapter's files in {record.source.path} have the digest {digest}, not "
            f"{expected}; ask for the one that is there, or for none."
        )

"""Where adapters' weights lie: files, then a cache in host memory, then slots of the device.

Files are read, checked and converted by one thread, away from the engine's loop; a copy from the
host's (pinned) memory to a slot runs on a stream of its own, beside the steps. The loop calls
everything else here and waits for nothing: :meth:`AdapterStore.poll` tells what has ended.
Decides nothing about slots (:mod:`octavo.scheduler.adapter_slots` does); the host's cache drops
who has not been copied for longest.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import torch

from octavo.errors import AdapterError, ModelLoadError, OctavoError
from octavo.kernels.adapters import AdapterStack
from octavo.lora.adapter_folder import find_adapter, read_adapter
from octavo.lora.adapter_weights import AdapterWeights, lay_out
from octavo.lora.outcomes import Filled, FillFailed, Opened, OpenFailed, Outcome

_log = logging.getLogger(__name__)
_STOP, _REREAD, _FIRST_READ = 0, 1, 2
"""What a request waits for goes before what is only being announced."""
_WIDEST_BYTES = 4
"""Of a number in an adapter's file."""


@dataclass(slots=True)
class _Record:
    """An adapter; ``entry`` is where the host's cache has it."""

    path: str
    digest: str = ""
    table: tuple[tuple[int, int], ...] = ()
    size: int = 0
    entry: int | None = None
    is_open: bool = False
    last_used: int = 0


@dataclass(order=True, slots=True)
class _Job:
    """For the thread: read an adapter, then perhaps fill a slot."""

    priority: int
    number: int
    adapter_id: int = field(compare=False, default=0)
    slot: int | None = field(compare=False, default=None)
    known_digest: str | None = field(compare=False, default=None)


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
        is_cuda = stack.storage.is_cuda
        shape = (num_host_entries, stack.storage.shape[1])
        # Pinned once and for all: pinning stops the device's other work. On the CPU pages are
        # mapped when first written.
        self._host = torch.empty(shape, dtype=stack.storage.dtype, pin_memory=is_cuda)
        self._host_tables = torch.zeros(
            num_host_entries, *stack.table.shape[1:], dtype=torch.int64, pin_memory=is_cuda
        )
        self._stream: torch.cuda.Stream | None = None
        if is_cuda:
            self._stream = torch.cuda.Stream(stack.storage.device)  # type: ignore[no-untyped-call]
        self._lock = threading.Condition()
        """Guards the records and entries, which the thread also changes."""
        self._records: dict[int, _Record] = {}
        self._entries: list[int | None] = [None] * num_host_entries
        self._busy: set[int] = set()
        """Entries that are being written, or copied from."""
        self._copies: list[_Copy] = []
        self._outcomes: deque[Outcome] = deque()
        self._read: deque[_Job] = deque()
        """Jobs whose adapter is in host memory again and whose slot can be filled."""
        self._news = threading.Event()
        self._jobs: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._num_jobs = 0
        self._num_unfinished = 0
        self._uses = 0
        self.num_evictions = 0
        """Adapters dropped from host memory."""
        self._thread = threading.Thread(target=self._run, name="adapter-reader", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether :meth:`poll` has something to tell, or will."""
        return bool(self._num_unfinished or self._read or self._outcomes or self._copies)

    def open(self, adapter_id: int, path: str, known_digest: str | None = None) -> None:
        """Begin to read an adapter; ends with :class:`Opened` or :class:`OpenFailed`.

        ``known_digest``: if that is what the files have, they are not kept.
        """
        with self._lock:
            assert adapter_id not in self._records, f"adapter {adapter_id} is open"
            self._records[adapter_id] = _Record(path)
        self._post(_FIRST_READ, adapter_id, known_digest=known_digest)

    def fill(self, adapter_id: int, slot: int) -> None:
        """Begin to copy an adapter to a slot; ends with :class:`Filled` or :class:`FillFailed`.

        The slot's last use must have been launched: the copy runs after what is queued on the
        current stream now.
        """
        with self._lock:
            record = self._records[adapter_id]
            assert record.is_open, f"adapter {adapter_id} is not open"
            is_there = record.entry is not None
        if is_there:
            self._copy(adapter_id, slot)
        else:
            self._post(_REREAD, adapter_id, slot)

    def close(self, adapter_id: int) -> None:
        """Forget an adapter; nothing more is heard of it."""
        with self._lock:
            record = self._records.pop(adapter_id, None)
            if record is not None and record.entry is not None and record.entry not in self._busy:
                self._entries[record.entry] = None

    def poll(self) -> list[Outcome]:
        """What has ended since last asked."""
        self._news.clear()
        while self._read:
            job = self._read.popleft()
            assert job.slot is not None
            self._copy(job.adapter_id, job.slot)
        for copy in [copy for copy in self._copies if copy.is_done]:
            self._copies.remove(copy)
            self._release(copy.entry)
            self._outcomes.append(Filled(copy.adapter_id, copy.slot))
        outcomes = []
        while self._outcomes:
            outcomes.append(self._outcomes.popleft())
        return outcomes

    def wait(self, timeout_s: float) -> None:
        """Until there may be something to poll, at most so long."""
        if self._copies:
            self._copies[0].event.synchronize()
        elif not self._outcomes:
            self._news.wait(timeout_s)

    def in_host_memory(self) -> list[int]:
        """Ids of adapters that need not be read again."""
        with self._lock:
            return [id for id in self._entries if id is not None]

    def shut_down(self) -> None:
        """End the thread; may be called twice."""
        self._jobs.put(_Job(_STOP, 0))
        self._thread.join(timeout=10)

    # ---- Copies (the loop) ------------------------------------------------------------------

    @torch.inference_mode()
    def _copy(self, adapter_id: int, slot: int) -> None:
        with self._lock:
            record = self._records.get(adapter_id)
            if record is None:
                return
            if record.entry is None:  # dropped again meanwhile
                self._post(_REREAD, adapter_id, slot)
                return
            entry, size = record.entry, record.size
            self._uses += 1
            record.last_used = self._uses
            self._busy.add(entry)
        target, table = self._stack.storage[slot], self._stack.table[slot]
        if self._stream is None:
            target[:size].copy_(self._host[entry, :size])
            table.copy_(self._host_tables[entry])
            self._release(entry)
            self._outcomes.append(Filled(adapter_id, slot))
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stack.storage.device))
        with torch.cuda.stream(self._stream):
            target[:size].copy_(self._host[entry, :size], non_blocking=True)
            table.copy_(self._host_tables[entry], non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        self._copies.append(_Copy(adapter_id, slot, entry, event))

    def _release(self, entry: int) -> None:
        """An entry is no longer written or read; it is nobody's if its adapter was closed."""
        with self._lock:
            self._busy.discard(entry)
            holder = self._entries[entry]
            record = None if holder is None else self._records.get(holder)
            if record is None or record.entry != entry:
                self._entries[entry] = None
            self._lock.notify_all()

    def _post(
        self,
        priority: int,
        adapter_id: int,
        slot: int | None = None,
        known_digest: str | None = None,
    ) -> None:
        with self._lock:
            self._num_jobs += 1
            self._num_unfinished += 1
        self._jobs.put(_Job(priority, self._num_jobs, adapter_id, slot, known_digest))

    # ---- Files (the thread) -----------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._jobs.get()).priority != _STOP:
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
            with self._lock:
                self._num_unfinished -= 1
            self._news.set()

    def _carry_out(self, job: _Job) -> Outcome | None:
        started = time.perf_counter()
        with self._lock:
            record = self._records.get(job.adapter_id)
        if record is None:
            return None  # closed meanwhile
        if record.entry is not None:  # two requests asked for it
            self._read.append(job)
            return None
        max_bytes = self._host.shape[1] * _WIDEST_BYTES
        files = read_adapter(find_adapter(record.path, self._download_dir), max_bytes)
        if files.digest == job.known_digest:
            self.close(job.adapter_id)
            return Opened(job.adapter_id, files.digest, 0, 0, 0.0, None, is_known=True)
        if record.is_open and files.digest != record.digest:
            raise AdapterError(
                f"The adapter's files in {record.path} are no longer those that were loaded; load "
                "it again to serve what is there now."
            )
        weights = lay_out(files, self._stack.projections, self._stack.max_rank)
        del files
        self._keep(job.adapter_id, record, weights)
        if self._records.get(job.adapter_id) is not record:
            return None  # closed meanwhile
        if job.slot is not None:
            self._read.append(job)
            return None
        return Opened(
            job.adapter_id,
            weights.digest,
            weights.rank,
            weights.size * self._host.element_size(),
            time.perf_counter() - started,
            weights.base_model,
        )

    @torch.inference_mode()
    def _keep(self, adapter_id: int, record: _Record, weights: AdapterWeights) -> None:
        entry = self._take_entry(adapter_id)
        try:
            weights.copy_into(self._host[entry])
            self._host_tables[entry].copy_(torch.tensor(weights.table, dtype=torch.int64))
        except BaseException:
            self._release(entry)
            raise
        with self._lock:
            self._uses += 1
            record.last_used = self._uses
            record.digest, record.table, record.size = weights.digest, weights.table, weights.size
            record.entry, record.is_open = entry, True
        self._release(entry)

    def _take_entry(self, adapter_id: int) -> int:
        """An empty entry, or that of the adapter copied longest ago; waits while all are busy."""
        with self._lock:
            while True:
                free = [e for e in range(len(self._entries)) if e not in self._busy]
                if free:
                    break
                self._lock.wait()
            entry = min(free, key=self._age)
            holder = self._entries[entry]
            if holder is not None:
                self._records[holder].entry = None
                self.num_evictions += 1
            self._entries[entry] = adapter_id
            self._busy.add(entry)
            return entry

    def _age(self, entry: int) -> int:
        holder = self._entries[entry]
        return -1 if holder is None else self._records[holder].last_used

    def _failed(self, job: _Job, error: OctavoError) -> Outcome:
        if job.slot is not None:
            return FillFailed(job.adapter_id, job.slot, error)
        self.close(job.adapter_id)
        return OpenFailed(job.adapter_id, error)

"""Adapters in the engine's process: between who decides about slots and who fills them.

Knows the scheduler's :class:`octavo.scheduler.adapter_slots.AdapterSlots` and the
:class:`octavo.lora.adapter_store.AdapterStore`; knows nothing of names, which are the server's
(:mod:`octavo.engine.adapter_table`). Here an adapter is a generation's number.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from octavo.engine.carried_errors import to_adapter_failure, to_refusal
from octavo.engine.messages import AdapterEvent, AdapterOpened
from octavo.errors import AdapterNotReadyError, OctavoError, RequestFailedError
from octavo.lora.adapter_source import AdapterSource
from octavo.lora.outcomes import Filled, FillFailed, Opened, OpenFailed, Outcome
from octavo.outputs import AdapterStats
from octavo.request import Request
from octavo.scheduler.scheduler import Scheduler

if TYPE_CHECKING:  # the engine's process comes up, and hears of its parent's end, before torch does
    from octavo.lora.adapter_store import AdapterStore

_log = logging.getLogger(__name__)
_RETRY_AFTER_S = 2.0
_CANNOT_BE_READ = (
    "The adapter has left memory and cannot be read again now; the log and GET /v1/adapters tell "
    "administrators why. Try again later."
)
"""For whoever may use it: why names places on this machine."""
_LOOK_S = 1.0
"""How often those are looked for, at least, who have waited too long."""


class AdapterControl:
    """Called by the engine's core, from its one loop."""

    def __init__(
        self,
        scheduler: Scheduler,
        store: AdapterStore,
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._slots = scheduler.adapters
        self._store = store
        self._wait_s = wait_s
        self._clock = clock
        self._events: list[AdapterEvent] = []
        self._next_look_s = 0.0
        self._open: dict[int, str] = {}
        """Digests, once known, of adapters that were opened and not closed: of others nothing is
        told."""
        self._unreadable: set[int] = set()
        """Those that could not be read again when last needed."""
        self._num_fills = 0

    def when_done(self, wake: Callable[[], None]) -> None:
        """Have ``wake`` called, by threads, when one has ended something."""
        self._store.when_done(wake)

    @property
    def is_busy(self) -> bool:
        """Whether there is something to take in or to be told, or a copy is under way: not while
        threads read files."""
        return self._store.is_busy or bool(self._events)

    @property
    def is_reading(self) -> bool:
        """Whether threads read files that are there, or convert them."""
        return self._store.is_reading

    def open(self, adapter_id: int, source: AdapterSource, known_digest: str | None) -> None:
        """Begin to read an adapter."""
        self._keep_begun()
        self._open[adapter_id] = ""
        self._store.open(adapter_id, source, known_digest)

    def close(self, adapter_id: int) -> None:
        """Forget an adapter; who still uses it ends with what there is, as if cancelled."""
        for request_id in self._scheduler.requests_of(adapter_id):
            self._scheduler.abort(request_id)
        if adapter_id in self._slots:
            self._slots.remove(adapter_id)
        self._open.pop(adapter_id, None)
        self._unreadable.discard(adapter_id)
        self._store.close(adapter_id)

    def advance(self) -> None:
        """Take in what has ended; before a step is planned."""
        if self._store.is_busy:
            for outcome in self._store.poll():
                self._take(outcome)
        if self._slots.waiting():
            now_s = self._clock()
            if now_s >= self._next_look_s:
                self._refuse_overdue(now_s)

    def next_look_s(self, now_s: float) -> float:
        """The earliest moment after ``now_s`` at which time alone may end a request, or give an
        adapter a slot."""
        if not self._slots.waiting():
            return math.inf
        return min(self._next_look_s, self._slots.next_turn_s(now_s))

    def begin_fills(self) -> None:
        """Begin the copies that planning has asked for."""
        fills = self._slots.take_fills()
        if fills:
            self._keep_begun()
        for adapter_id, slot in fills:
            self._store.fill(adapter_id, slot)

    def wait_for_copy(self) -> None:
        """Until a copy to the device has ended, if one is under way: milliseconds."""
        self._store.wait_for_copy()

    def take_events(self) -> list[AdapterEvent]:
        """For whoever asked."""
        events, self._events = self._events, []
        return events

    def stats(self) -> AdapterStats:
        """As of now."""
        return AdapterStats(
            num_slots=self._slots.num_slots,
            resident=self._slots.resident(),
            in_host_memory=self._store.in_host_memory(),
            running=self._slots.running(),
            waiting=self._slots.waiting(),
            num_slot_evictions=self._slots.num_evictions,
            num_host_evictions=self._store.num_evictions,
            num_fills=self._num_fills,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless slots, host memory and what is open agree."""
        opened = {adapter_id for adapter_id, digest in self._open.items() if digest}
        assert opened == self._slots.known(), "an adapter is lost between the slots and the store"
        self._store.check_integrity()

    def shut_down(self) -> None:
        """End what runs beside the loop."""
        self._store.shut_down()

    def _keep_begun(self) -> None:
        """Before host memory is given to another adapter: an answer that has begun ends on the
        version that it began with, whatever has become of its files, though it may have to wait
        for a slot again. Others can be refused."""
        kept = set(self._slots.running())
        for request in self._scheduler.waiting_for(set(self._slots.waiting())):
            if request.group.has_begun and request.adapter_id is not None:
                kept.add(request.adapter_id)
        self._store.keep(kept)

    def _take(self, outcome: Outcome) -> None:
        if outcome.adapter_id not in self._open:
            return
        match outcome:
            case Opened():
                self._opened(outcome)
            case OpenFailed(adapter_id, error):
                del self._open[adapter_id]
                self._events.append(to_adapter_failure(adapter_id, error))
            case Filled(adapter_id, slot):
                self._num_fills += 1
                self._slots.filled(adapter_id, slot)
                self._read_again(adapter_id)
            case FillFailed(adapter_id, slot, error):
                _log.error("Adapter %d cannot be used: %s", adapter_id, error)
                self._slots.fill_failed(adapter_id, slot)
                self._unreadable.add(adapter_id)
                self._events.append(to_adapter_failure(adapter_id, error))
                self._refuse(
                    self._scheduler.waiting_for({adapter_id}),
                    AdapterNotReadyError(_CANNOT_BE_READ, _RETRY_AFTER_S),
                )

    def _opened(self, opened: Opened) -> None:
        if opened.is_known:
            del self._open[opened.adapter_id]
        else:
            self._open[opened.adapter_id] = opened.digest
            self._slots.add(opened.adapter_id)
        self._events.append(
            AdapterOpened(
                opened.adapter_id,
                opened.digest,
                opened.rank,
                opened.size_bytes,
                opened.seconds,
                opened.base_model,
                opened.revision,
                opened.is_known,
            )
        )

    def _read_again(self, adapter_id: int) -> None:
        """Tell that an adapter can be used, where it was told that it cannot."""
        if adapter_id in self._unreadable:
            self._unreadable.discard(adapter_id)
            digest = self._open[adapter_id]
            self._events.append(AdapterOpened(adapter_id, digest, 0, 0, 0.0, is_known=True))

    def _refuse_overdue(self, now_s: float) -> None:
        """End those who have waited for an adapter alone for as long as a request may. Who has
        begun goes on waiting, and so do the other choices of its answer: its tokens are kept, and
        it is the first to start again."""
        # Whoever comes to wait after this look has at least so long.
        self._next_look_s = now_s + min(_LOOK_S, self._wait_s)
        late = []
        for request in self._scheduler.waiting_for(set(self._slots.waiting())):
            assert request.adapter_id is not None
            missing_s = self._slots.missing_since_s(request.adapter_id, request.priority)
            if missing_s is None or request.group.has_begun:
                continue
            since_s = max(request.arrival_s, missing_s)
            if since_s + self._wait_s <= now_s:
                late.append(request)
            else:
                self._next_look_s = min(self._next_look_s, since_s + self._wait_s)
        message = (
            f"The adapter did not get on the device within {self._wait_s:g} s (all "
            f"{self._slots.num_slots} slots are in use, or it is still being read); try again, "
            "or start the server with a larger --max-loras."
        )
        self._refuse(late, AdapterNotReadyError(message, _RETRY_AFTER_S))

    def _refuse(self, requests: Sequence[Request], error: OctavoError) -> None:
        """End requests that wait for an adapter. Those that have begun cannot be refused any
        more: they fail."""
        for request in requests:
            self._events.append(to_refusal(request.id, error))
            self._scheduler.fail(request.id, str(RequestFailedError(str(error))))

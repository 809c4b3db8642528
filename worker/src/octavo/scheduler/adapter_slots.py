"""Which adapter lies in which slot of the device, and which comes next.

Knows adapters by their ids and who of the requests wants one; knows nothing of weights or of how
long a copy takes. A request can start when its adapter is in a slot. To get there an adapter
takes a free slot, or that of the adapter that has been idle longest. When all are in use by
running requests, whoever asks is passed over, so that requests of adapters that are there are
computed together; but not for long: after ``patience_s`` one adapter is chosen to leave, which
means that its waiting requests start no more until it has made room. Who gets the room keeps it
until it has been used, also from those whose turns come before, and while more wait for it for
``patience_s`` from then on, so that they start together: a copy for each would cost more. So
adapters that many ask for cannot keep others out for longer than their running requests take; and
whoever has waited longer than a request may is told by :meth:`AdapterSlots.missing_since_s`.

Nobody makes room at the cost of a better priority (a smaller number): what was promised to an
adapter binds only those of no better priority than the best of its waiting requests.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

PATIENCE_S = 0.2


@dataclass(slots=True)
class _Adapter:
    slot: int | None = None
    is_filled: bool = False
    """Whether the slot holds it already; a copy to it may be under way."""
    num_running: int = 0
    """Requests with a row."""
    waiting: Counter[int] = field(default_factory=Counter)
    """Requests without one, by priority; of none there is no entry."""
    missing_since_s: float | None = None
    """Since when nothing but the adapter keeps a request from starting."""
    leaves_for: int | None = None
    """The adapter it shall make room for."""
    open_since_s: float | None = None
    """Since when requests of it could start in the slot that it has."""
    spared_since_s: float | None = None
    """Since when others have been kept from its slot, as nobody could start in it yet."""
    last_used: int = 0
    last_priority: int = 0
    """Of the request that started last."""


class AdapterSlots:
    """Slots 0 to ``num_slots - 1``. Not thread-safe: the scheduler's."""

    def __init__(self, num_slots: int, patience_s: float = PATIENCE_S) -> None:
        self.num_slots = num_slots
        self.num_evictions = 0
        self._patience_s = patience_s
        self._adapters: dict[int, _Adapter] = {}
        self._holders: list[int | None] = [None] * num_slots
        self._fills: list[tuple[int, int]] = []
        self._uses = 0
        self._waiting: set[int] = set()

    def __contains__(self, adapter_id: int) -> bool:
        return adapter_id in self._adapters

    def known(self) -> set[int]:
        """All that requests may use."""
        return set(self._adapters)

    # ---- What adapters there are ------------------------------------------------------------

    def add(self, adapter_id: int) -> None:
        """An adapter that requests may use from now on."""
        assert adapter_id not in self._adapters, f"adapter {adapter_id} is there twice"
        self._adapters[adapter_id] = _Adapter()

    def remove(self, adapter_id: int) -> None:
        """Forget an adapter that no request uses any more."""
        adapter = self._adapters.pop(adapter_id)
        num_open = adapter.num_running + adapter.waiting.total()
        assert not num_open, f"adapter {adapter_id} is in use"
        self._release_slot(adapter)
        self._fills = [fill for fill in self._fills if fill[0] != adapter_id]

    # ---- Requests ---------------------------------------------------------------------------

    def wait(self, adapter_id: int, priority: int = 0) -> None:
        """A request of it joins the waiting ones."""
        self._adapters[adapter_id].waiting[priority] += 1
        self._waiting.add(adapter_id)

    def stop_waiting(self, adapter_id: int, priority: int = 0) -> None:
        """It starts, or ends."""
        adapter = self._adapters[adapter_id]
        adapter.waiting[priority] -= 1
        if not adapter.waiting[priority]:
            del adapter.waiting[priority]
        if not adapter.waiting:
            adapter.missing_since_s = None
            self._waiting.discard(adapter_id)

    def start(self, adapter_id: int, priority: int = 0) -> int:
        """A request of it gets a row; returns the slot."""
        adapter = self._adapters[adapter_id]
        assert adapter.slot is not None, f"adapter {adapter_id} is in no slot"
        assert adapter.is_filled, f"slot {adapter.slot} is not filled yet"
        adapter.num_running += 1
        self._uses += 1
        adapter.last_used, adapter.last_priority = self._uses, priority
        return adapter.slot

    def end(self, adapter_id: int) -> None:
        """A request of it loses its row."""
        self._adapters[adapter_id].num_running -= 1

    def can_start(self, adapter_id: int, now_s: float, priority: int = 0) -> bool:
        """Whether a request of it could start; if not, what can be done to that end is done."""
        adapter = self._adapters[adapter_id]
        if self._can_be_used(adapter, adapter_id, priority):
            adapter.missing_since_s = None
            if adapter.open_since_s is None:
                adapter.open_since_s = now_s
            return True
        if adapter.missing_since_s is None:
            adapter.missing_since_s = now_s
        if adapter.slot is None:
            self._give_slot(adapter_id, adapter, priority, now_s)
        return False

    def missing_since_s(self, adapter_id: int, priority: int = 0) -> float | None:
        """Since when the adapter alone keeps its requests of this priority from starting."""
        adapter = self._adapters[adapter_id]
        # One that can be used may not have been asked for since: others' turns came before.
        return None if self._can_be_used(adapter, adapter_id, priority) else adapter.missing_since_s

    def next_turn_s(self, now_s: float) -> float:
        """When the next slot that was spared until now can be taken; infinite where none was.
        What else gives an adapter a slot is that a request ends or a copy does."""
        adapters = [self._adapters[holder] for holder in self._holders if holder is not None]
        spared = [
            since_s for each in adapters for since_s in (each.spared_since_s, each.open_since_s)
        ]
        ends = [since_s + self._patience_s for since_s in spared if since_s is not None]
        return min((end_s for end_s in ends if end_s > now_s), default=math.inf)

    # ---- Copies -----------------------------------------------------------------------------

    def take_fills(self) -> list[tuple[int, int]]:
        """``(adapter id, slot)``: copies to begin, since last asked."""
        fills, self._fills = self._fills, []
        return fills

    def filled(self, adapter_id: int, slot: int) -> None:
        """A copy has ended. Of an adapter that was removed meanwhile it tells nothing."""
        adapter = self._adapters.get(adapter_id)
        if adapter is not None and adapter.slot == slot:
            adapter.is_filled = True

    def fill_failed(self, adapter_id: int, slot: int) -> None:
        """A copy could not be made: the slot is free again."""
        adapter = self._adapters.get(adapter_id)
        if adapter is not None and adapter.slot == slot:
            assert not adapter.is_filled
            self._release_slot(adapter)

    # ---- Accounts ---------------------------------------------------------------------------

    def resident(self) -> dict[int, int]:
        """Adapter id → slot, of all that are filled."""
        return {
            holder: slot
            for slot, holder in enumerate(self._holders)
            if holder is not None and self._adapters[holder].is_filled
        }

    def running(self) -> list[int]:
        """Ids with running requests."""
        return [id for id in self._holders if id is not None and self._adapters[id].num_running]

    def waiting(self) -> list[int]:
        """Ids with waiting requests."""
        return sorted(self._waiting)

    def check_integrity(self, running: dict[int, int], waiting: dict[int, int]) -> None:
        """Raise AssertionError unless slots and counts are those of the requests by adapter."""
        for adapter_id, adapter in self._adapters.items():
            assert adapter.num_running == running.get(adapter_id, 0), f"{adapter_id} runs amiss"
            assert adapter.waiting.total() == waiting.get(adapter_id, 0), (
                f"{adapter_id} waits amiss"
            )
            assert adapter.is_filled or not adapter.num_running
            if adapter.slot is not None:
                assert self._holders[adapter.slot] == adapter_id, f"{adapter_id} lost its slot"
        held = [holder for holder in self._holders if holder is not None]
        assert len(held) == len(set(held)), "an adapter is in two slots"
        assert all(self._adapters[holder].slot is not None for holder in held), "a slot leaked"

    # ---- Inside -----------------------------------------------------------------------------

    def _can_be_used(self, adapter: _Adapter, adapter_id: int, priority: int) -> bool:
        return adapter.is_filled and not self._is_promised(adapter, adapter_id, priority)

    def _give_slot(self, adapter_id: int, adapter: _Adapter, priority: int, now_s: float) -> None:
        slot = self._free_slot(adapter_id, priority, now_s)
        if slot is not None:
            self._holders[slot] = adapter_id
            adapter.slot, adapter.is_filled = slot, False
            adapter.spared_since_s = None
            self._fills.append((adapter_id, slot))
            return
        assert adapter.missing_since_s is not None
        if now_s - adapter.missing_since_s >= self._patience_s:
            self._choose_who_leaves(adapter_id, priority, now_s)

    def _free_slot(self, wanted_by: int, priority: int, now_s: float) -> int | None:
        """An empty slot, or that of an idle adapter, which loses it."""
        for slot, holder in enumerate(self._holders):
            if holder is None:
                return slot
        adapters = [self._adapters[holder] for holder in self._holders if holder is not None]
        idle = [
            adapter
            for adapter in adapters
            if adapter.is_filled
            and not self._is_promised(adapter, wanted_by, priority)
            and not adapter.num_running
            and not self._is_spared(adapter, now_s)
        ]
        if not idle:
            return None
        # Who was told to leave for us goes first, then who is wanted by nobody, then the oldest.
        chosen = min(idle, key=lambda a: (a.leaves_for != wanted_by, bool(a.waiting), a.last_used))
        freed = chosen.slot
        self._release_slot(chosen)
        self.num_evictions += 1
        return freed

    def _is_spared(self, adapter: _Adapter, now_s: float) -> bool:
        """Whoever's requests can start keeps the slot for some time, while any wait. So does
        whoever has waited for a slot for long, and got it, until then, though others' turns come
        first: they would take it from it again and again. Not for long either: it may be something
        else that keeps it from starting now."""
        if not adapter.waiting:
            return False
        if adapter.open_since_s is not None:
            return now_s - adapter.open_since_s < self._patience_s
        since_s = adapter.missing_since_s
        if since_s is None or now_s - since_s < self._patience_s:
            return False
        if adapter.spared_since_s is None:
            adapter.spared_since_s = now_s
        return now_s - adapter.spared_since_s < self._patience_s

    def _choose_who_leaves(self, wanted_by: int, priority: int, now_s: float) -> None:
        """The one with the fewest running requests. It stays that one, unless it turns out to serve
        better priorities, for which it may never make room, and another does not."""
        holders = [self._adapters[holder] for holder in self._holders if holder is not None]
        may_leave = [
            adapter
            for adapter in holders
            if adapter.is_filled
            and not self._is_promised(adapter, wanted_by, priority)
            and (adapter.leaves_for == wanted_by or not self._is_spared(adapter, now_s))
        ]
        if not may_leave:
            return
        chosen = min(
            may_leave,
            key=lambda a: (
                a.last_priority < priority,
                a.leaves_for != wanted_by,
                a.num_running,
                a.last_used,
            ),
        )
        for adapter in holders:
            if adapter.leaves_for == wanted_by:
                adapter.leaves_for = None
        chosen.leaves_for = wanted_by

    def _is_promised(self, adapter: _Adapter, wanted_by: int, priority: int) -> bool:
        """Whether its room is for another than who wants it, and that not of worse priority."""
        if adapter.leaves_for in (None, wanted_by):
            return False
        other = self._adapters.get(adapter.leaves_for)
        if other is None or other.slot is not None or not other.waiting:
            adapter.leaves_for = None  # it does not need the room any more
            return False
        return min(other.waiting) <= priority

    def _release_slot(self, adapter: _Adapter) -> None:
        if adapter.slot is not None:
            self._holders[adapter.slot] = None
        adapter.slot, adapter.is_filled, adapter.leaves_for = None, False, None
        adapter.open_since_s = None

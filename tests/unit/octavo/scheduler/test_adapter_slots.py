"""Who gets a slot, who leaves, and that nobody waits forever."""

from __future__ import annotations

import math
import random

import pytest

from octavo.scheduler.adapter_slots import AdapterSlots

PATIENCE_S = 1.0


def slots_with(num_slots: int, num_adapters: int) -> AdapterSlots:
    slots = AdapterSlots(num_slots, PATIENCE_S)
    for adapter in range(num_adapters):
        slots.add(adapter)
    return slots


def bring(slots: AdapterSlots, adapter: int, now_s: float = 0.0) -> bool:
    """A waiting request asks, copies end at once; returns whether it can start now."""
    slots.wait(adapter)
    slots.can_start(adapter, now_s)
    for fill in slots.take_fills():
        slots.filled(*fill)
    return slots.can_start(adapter, now_s)


def start(slots: AdapterSlots, adapter: int) -> int:
    slots.stop_waiting(adapter)
    return slots.start(adapter)


def test_a_request_starts_only_when_its_slot_is_filled() -> None:
    slots = slots_with(2, 1)
    slots.wait(0)
    assert not slots.can_start(0, 0)
    assert not slots.can_start(0, 0)
    assert slots.take_fills() == [(0, 0)]
    assert slots.take_fills() == []
    slots.filled(0, 0)
    assert slots.can_start(0, 0)
    assert start(slots, 0) == 0
    slots.check_integrity({0: 1}, {})


def test_the_adapter_that_is_idle_longest_gives_way() -> None:
    slots = slots_with(2, 3)
    for adapter in (0, 1):
        assert bring(slots, adapter)
        start(slots, adapter)
    slots.end(1)
    slots.end(0)
    assert bring(slots, 0)
    start(slots, 0)
    slots.end(0)
    assert bring(slots, 2)
    assert slots.resident() == {0: 0, 2: 1}
    assert slots.num_evictions == 1


def test_adapters_in_use_are_never_evicted() -> None:
    slots = slots_with(1, 2)
    assert bring(slots, 0)
    start(slots, 0)
    assert not bring(slots, 1)
    assert not bring(slots, 1, now_s=10 * PATIENCE_S)
    assert slots.resident() == {0: 0}
    slots.check_integrity({0: 1}, {1: 2})


def test_after_a_while_the_least_used_adapter_admits_nobody_until_it_has_made_room() -> None:
    slots = slots_with(2, 3)
    for adapter in (0, 0, 1):
        assert bring(slots, adapter)
        start(slots, adapter)
    assert not bring(slots, 2, now_s=0)
    assert bring(slots, 1, now_s=PATIENCE_S / 2)  # patience is not over: 1 admits
    assert not slots.can_start(2, PATIENCE_S)
    assert not slots.can_start(1, PATIENCE_S)  # 1 leaves
    assert slots.can_start(0, PATIENCE_S)
    slots.end(1)
    assert not slots.can_start(1, PATIENCE_S)
    assert not slots.can_start(2, PATIENCE_S)  # it takes the slot, to be filled
    assert slots.take_fills() == [(2, 1)]
    slots.filled(2, 1)
    assert slots.can_start(2, PATIENCE_S)


def test_nobody_leaves_for_one_that_has_gone() -> None:
    slots = slots_with(1, 2)
    assert bring(slots, 0)
    start(slots, 0)
    bring(slots, 1, now_s=0)
    slots.can_start(1, 2 * PATIENCE_S)
    slots.wait(0)
    assert not slots.can_start(0, 2 * PATIENCE_S)
    slots.stop_waiting(1)  # aborted
    assert slots.can_start(0, 2 * PATIENCE_S)
    slots.remove(1)
    assert slots.can_start(0, 2 * PATIENCE_S)


def test_who_was_to_leave_for_one_that_has_gone_makes_room_for_the_next_at_once() -> None:
    slots = slots_with(1, 3)
    assert bring(slots, 0)
    start(slots, 0)
    bring(slots, 1, now_s=0)
    slots.can_start(1, PATIENCE_S)  # 0 is to leave for it
    slots.stop_waiting(1)  # aborted
    slots.end(0)
    slots.wait(2)
    assert not slots.can_start(2, PATIENCE_S)
    assert slots.take_fills() == [(2, 0)]


def test_a_failed_copy_frees_the_slot_and_a_late_one_tells_nothing() -> None:
    slots = slots_with(1, 2)
    slots.wait(0)
    slots.can_start(0, 0)
    assert slots.take_fills() == [(0, 0)]
    slots.fill_failed(0, 0)
    assert slots.resident() == {}
    slots.stop_waiting(0)
    slots.remove(0)
    slots.filled(0, 0)
    assert bring(slots, 1)
    slots.check_integrity({}, {1: 1})


def test_who_waits_for_nothing_but_an_adapter_is_told_of() -> None:
    slots = slots_with(1, 2)
    assert bring(slots, 0)
    start(slots, 0)
    slots.wait(1)
    assert slots.missing_since_s(1) is None  # it may be something else that keeps it waiting
    assert not slots.can_start(1, 5.0)
    assert slots.missing_since_s(1) == 5.0
    slots.wait(0)
    assert not slots.can_start(1, 7.0)
    assert not slots.can_start(0, 7.0)  # it leaves for 1
    assert slots.missing_since_s(0) == 7.0
    assert slots.missing_since_s(0, -1) is None  # those of better priority do not wait for that
    assert slots.missing_since_s(1) == 5.0
    slots.stop_waiting(1)
    assert slots.can_start(0, 8.0)
    assert slots.missing_since_s(0) is None
    slots.wait(1)
    assert not slots.can_start(1, 9.0)
    assert slots.missing_since_s(1) == 9.0


def test_who_has_waited_for_long_keeps_the_slot_though_others_turns_come_first() -> None:
    """Those with a deadline come first, and more of them all the time."""
    slots = slots_with(1, 3)
    assert bring(slots, 0)
    start(slots, 0)
    for adapter in (1, 2):
        slots.wait(adapter)
    for now_s in (0.0, PATIENCE_S):
        assert not slots.can_start(1, now_s)
        assert not slots.can_start(2, now_s)
    slots.end(0)
    assert not slots.can_start(2, PATIENCE_S)
    assert not slots.can_start(1, PATIENCE_S)
    assert slots.take_fills() == [(1, 0)]
    slots.filled(1, 0)
    # It has waited for as long, and neither gets the slot nor has the other leave it.
    assert not slots.can_start(2, PATIENCE_S)
    assert not slots.take_fills()
    assert slots.can_start(1, PATIENCE_S)
    start(slots, 1)
    slots.end(1)
    assert not slots.can_start(2, PATIENCE_S)
    assert slots.take_fills() == [(2, 0)]


def test_who_was_told_to_leave_makes_room_at_once_however_many_wait_for_it() -> None:
    slots = slots_with(1, 2)
    assert bring(slots, 0)
    start(slots, 0)
    slots.wait(0)
    slots.wait(1)
    for now_s in (0.0, PATIENCE_S, 5 * PATIENCE_S):
        assert not slots.can_start(1, now_s)
        assert slots.can_start(0, now_s) == (now_s == 0.0)
    slots.end(0)
    assert not slots.can_start(0, 6 * PATIENCE_S)
    assert not slots.can_start(1, 6 * PATIENCE_S)
    assert slots.take_fills() == [(1, 0)]


def test_all_who_wait_for_an_adapter_start_together_though_others_have_waited_for_as_long() -> None:
    slots = slots_with(1, 2)
    assert bring(slots, 0)
    start(slots, 0)
    for adapter in (1, 0, 1):
        slots.wait(adapter)
        slots.can_start(adapter, 0.0)
    assert not slots.can_start(1, PATIENCE_S)  # 0 is to leave
    assert not slots.can_start(0, PATIENCE_S)
    late_s = 3 * PATIENCE_S
    slots.end(0)
    assert not slots.can_start(1, late_s)
    for fill in slots.take_fills():
        slots.filled(*fill)
    assert slots.can_start(1, late_s)
    start(slots, 1)
    assert not slots.can_start(0, late_s)
    assert slots.can_start(1, late_s)
    start(slots, 1)
    slots.wait(1)
    assert not slots.can_start(0, late_s + PATIENCE_S)
    assert not slots.can_start(1, late_s + PATIENCE_S)  # others' turn
    slots.check_integrity({1: 2}, {0: 1, 1: 1})


def test_an_adapter_whose_requests_end_at_once_keeps_its_slot_for_those_that_still_wait() -> None:
    slots = slots_with(1, 2)
    for adapter in (1, 0):
        slots.wait(adapter)
    assert bring(slots, 1)
    start(slots, 1)
    slots.end(1)
    assert not slots.can_start(0, PATIENCE_S / 2)
    assert slots.next_turn_s(PATIENCE_S / 2) == PATIENCE_S
    assert slots.can_start(1, PATIENCE_S / 2)
    assert not slots.can_start(0, PATIENCE_S)
    assert slots.take_fills() == [(0, 0)]
    slots.check_integrity({}, {0: 1, 1: 1})


def test_nobody_is_spared_for_long() -> None:
    """Its requests may be kept from starting by something else."""
    slots = slots_with(1, 3)
    assert bring(slots, 0)
    start(slots, 0)
    slots.wait(1)
    slots.can_start(1, 0.0)
    slots.end(0)
    slots.can_start(1, PATIENCE_S)
    for fill in slots.take_fills():
        slots.filled(*fill)
    slots.wait(2)
    assert not slots.can_start(2, PATIENCE_S)
    assert not slots.can_start(2, 1.9 * PATIENCE_S)
    assert not slots.take_fills()
    assert slots.next_turn_s(1.9 * PATIENCE_S) == 2 * PATIENCE_S
    assert slots.next_turn_s(2 * PATIENCE_S) == math.inf
    assert not slots.can_start(2, 2 * PATIENCE_S)
    assert slots.take_fills() == [(2, 0)]
    slots.check_integrity({}, {1: 1, 2: 1})


def test_who_is_to_leave_for_a_worse_priority_still_admits_better_ones() -> None:
    slots = slots_with(1, 2)
    assert bring(slots, 0)
    start(slots, 0)
    slots.wait(1, 2)
    for now_s in (0.0, PATIENCE_S):
        assert not slots.can_start(1, now_s, 2)
    for priority, may_start in ((0, True), (1, True), (2, False), (3, False)):
        slots.wait(0, priority)
        assert slots.can_start(0, PATIENCE_S, priority) == may_start, priority
    slots.wait(1, 1)  # a better one for the same
    assert not slots.can_start(0, PATIENCE_S, 1)
    assert slots.can_start(0, PATIENCE_S, 0)
    slots.stop_waiting(1, 1)  # aborted
    assert slots.can_start(0, PATIENCE_S, 1)
    assert not slots.can_start(0, PATIENCE_S, 2)


@pytest.mark.parametrize("is_idle", [True, False], ids=["idle", "running"])
def test_room_that_is_made_for_a_worse_priority_goes_to_the_better_one(is_idle: bool) -> None:
    slots = slots_with(1, 3)
    assert bring(slots, 0)
    start(slots, 0)
    slots.wait(1, 2)
    slots.wait(2, 0)
    for now_s in (0.0, PATIENCE_S):
        assert not slots.can_start(1, now_s, 2)  # 0 is to leave for it
    if is_idle:
        slots.end(0)
    for now_s in (PATIENCE_S, 2 * PATIENCE_S):
        assert not slots.can_start(2, now_s, 0)
        assert not slots.can_start(1, now_s, 2)
    if not is_idle:
        slots.end(0)
        assert not slots.can_start(1, 2 * PATIENCE_S, 2)
        assert not slots.can_start(2, 2 * PATIENCE_S, 0)
    assert slots.take_fills() == [(2, 0)]


@pytest.mark.parametrize("came_first", [True, False])
def test_of_several_one_leaves_that_does_not_serve_better_priorities(came_first: bool) -> None:
    """Who serves better ones all the time may never make room."""
    slots = slots_with(2, 3)
    for adapter, priority in ((0, 0 if came_first else 2), (1, 2), (1, 2)):
        assert bring(slots, adapter)
        slots.stop_waiting(adapter)
        slots.start(adapter, priority)
    slots.wait(2, 1)
    for now_s in (0.0, PATIENCE_S):
        assert not slots.can_start(2, now_s, 1)
    slots.wait(0, 0)
    assert slots.can_start(0, PATIENCE_S, 0)
    slots.stop_waiting(0, 0)
    slots.start(0, 0)
    assert not slots.can_start(2, PATIENCE_S, 1)
    for adapter, may_start in ((1, False), (0, True)):
        slots.wait(adapter, 2)
        assert slots.can_start(adapter, PATIENCE_S, 2) == may_start, adapter


def test_removing_an_adapter_in_use_is_our_bug() -> None:
    slots = slots_with(1, 1)
    slots.wait(0)
    with pytest.raises(AssertionError, match="in use"):
        slots.remove(0)


@pytest.mark.parametrize("seed", range(5))
def test_whoever_waits_is_served_whatever_the_others_do(seed: int) -> None:
    """Every adapter has requests all the time; each runs a random while. Turns come in the order of
    arrival, or (odd seeds) in another that always puts some adapters first."""
    draw = random.Random(seed)
    slots = slots_with(3, 8)
    waiting = [draw.randrange(8) for _ in range(40)]
    for adapter in waiting:
        slots.wait(adapter)
    running: list[tuple[int, int]] = []
    filling: list[tuple[int, tuple[int, int]]] = []
    started_at = dict.fromkeys(range(8), 0)
    for step in range(3000):
        now_s = 0.02 * step
        for end, fill in [entry for entry in filling if entry[0] <= step]:
            filling.remove((end, fill))
            slots.filled(*fill)
        for end, adapter in [entry for entry in running if entry[0] <= step]:
            running.remove((end, adapter))
            slots.end(adapter)
            waiting.append(draw.randrange(8))
            slots.wait(waiting[-1])
        for adapter in sorted(waiting) if seed % 2 else list(waiting):
            if len(running) < 16 and slots.can_start(adapter, now_s):
                waiting.remove(adapter)
                start(slots, adapter)
                running.append((step + draw.randrange(1, 60), adapter))
                started_at[adapter] = step
        filling += [(step + 2, fill) for fill in slots.take_fills()]
        counts = {adapter: [a for _, a in running].count(adapter) for adapter in range(8)}
        slots.check_integrity(counts, {a: waiting.count(a) for a in range(8)})
        # Patience, a running request's longest time, a copy; and those who wait before it.
        assert all(step - started_at[a] < 1200 for a in waiting), (step, started_at)
    assert slots.num_evictions > 30

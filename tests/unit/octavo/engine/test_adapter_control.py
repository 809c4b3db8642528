"""Waiting for a slot has an end, unloading too, and neither is felt by others."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest

from octavo.engine.adapter_control import AdapterControl
from octavo.engine.messages import AdapterFailed, AdapterOpened, Refused
from octavo.errors import AdapterChangedError
from octavo.lora.adapter_source import AdapterSource
from octavo.lora.outcomes import Filled, FillFailed, Opened, Outcome
from scheduler_world import SchedulerWorld, make_request

WAIT_S = 30.0


class Store:
    """Reads and copies everything at once, unless held."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.fills: list[tuple[int, int]] = []
        self.kept: list[set[int]] = []
        """When each was opened or filled."""
        self.is_holding = False

    @property
    def is_busy(self) -> bool:
        return bool(self.outcomes)

    def open(self, adapter_id: int, source: AdapterSource, known_digest: str | None) -> None:
        self.outcomes.append(Opened(adapter_id, f"d{adapter_id}", 4, 9, 0.1, None))

    def fill(self, adapter_id: int, slot: int) -> None:
        self.fills.append((adapter_id, slot))
        if not self.is_holding:
            self.outcomes.append(Filled(adapter_id, slot))

    def keep(self, adapter_ids: set[int]) -> None:
        self.kept.append(adapter_ids)

    def close(self, adapter_id: int) -> None: ...

    def poll(self) -> list[Outcome]:
        outcomes, self.outcomes = self.outcomes, []
        return outcomes


class World(SchedulerWorld):
    """One slot; adapters 0, 1 and 2."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(num_adapter_slots=1, max_model_len=4096, num_blocks=2048, **changes)
        self.store = Store()
        self.control = AdapterControl(
            self.scheduler, cast(Any, self.store), WAIT_S, lambda: self.now_s
        )
        for adapter_id in range(3):
            self.control.open(adapter_id, AdapterSource("/x"), None)
        self.control.advance()
        assert len(self.control.take_events()) == 3

    def ask(
        self, id: str, adapter_id: int | None, max_tokens: int = 4000, priority: int = 0
    ) -> None:
        request = make_request(
            id,
            6,
            max_tokens=max_tokens,
            adapter_id=adapter_id,
            arrival_s=self.now_s,
            priority=priority,
        )
        self.add(request)

    def run(self, num_steps: int = 4, seconds: float = 0.0) -> None:
        self.now_s += seconds
        for _ in range(num_steps):
            self.control.advance()
            self.plan()
            self.control.begin_fills()
            self.commit()

    def refused(self) -> dict[str, Refused]:
        events = self.control.take_events()
        return {event.request_id: event for event in events if isinstance(event, Refused)}


def test_waiting_for_a_slot_has_an_end_and_others_go_on() -> None:
    world = World()
    world.ask("holder", 0)
    world.run()
    world.ask("early", 1)
    world.run()
    world.run(seconds=20.0)
    world.ask("late", 1)
    world.ask("base", None, max_tokens=4)
    world.run(seconds=9.0)
    assert not world.refused()
    assert world.ends["base"].finish_reason == "length"
    world.run(seconds=1.0)
    refused = world.refused()
    assert list(refused) == ["early"]
    assert refused["early"].kind == "AdapterNotReadyError"
    assert refused["early"].retry_after_s > 0
    assert "--max-loras" in refused["early"].message
    world.run(seconds=20.0)
    assert list(world.refused()) == ["late"]
    # 0 was to leave for 1, which nobody asks for any more.
    world.ask("again", 0, max_tokens=4)
    world.run()
    assert world.ends["again"].finish_reason == "length"
    assert "holder" not in world.ends


def test_the_moment_at_which_somebody_has_waited_too_long_is_known() -> None:
    world = World()
    assert world.control.next_look_s(world.now_s) == math.inf
    world.store.is_holding = True
    world.ask("a", 0)
    world.run(seconds=5.0)  # missed since then
    world.run(seconds=WAIT_S - 0.75)
    assert world.control.next_look_s(world.now_s) == 5.0 + WAIT_S
    world.ask("b", 0)
    world.run(seconds=0.5)
    assert not world.refused()
    world.now_s = world.control.next_look_s(world.now_s)
    world.run()
    assert list(world.refused()) == ["a"]
    assert world.now_s == 5.0 + WAIT_S
    while not (refused := world.refused()):
        world.now_s = world.control.next_look_s(world.now_s)
        world.run()
    assert list(refused) == ["b"]
    assert world.now_s == 4.25 + 2 * WAIT_S
    assert world.control.next_look_s(world.now_s) == math.inf


def test_a_copy_that_does_not_end_is_waited_for_no_longer() -> None:
    world = World()
    world.store.is_holding = True
    world.ask("a", 0)
    world.run()
    assert world.store.fills == [(0, 0)]
    world.run(seconds=WAIT_S + 1)
    assert list(world.refused()) == ["a"]


def test_who_waits_for_something_else_is_not_refused() -> None:
    world = World(max_num_seqs=1)
    world.ask("holder", None)
    world.run()
    world.ask("a", 0)
    world.run(seconds=WAIT_S + 1)
    assert not world.refused()  # its adapter is there; a row is not
    world.end("holder", "abort")
    world.run()
    assert world.outputs["a"]


def test_whose_adapter_has_come_is_not_refused_while_the_turns_of_others_come() -> None:
    world = World(max_num_seqs=1)
    world.store.is_holding = True
    world.ask("late", 0, max_tokens=4, priority=1)
    world.run()
    world.ask("holder", None)
    world.ask("next", None, max_tokens=4)
    world.run()
    world.store.outcomes += [Filled(*fill) for fill in world.store.fills]
    world.run(seconds=2 * WAIT_S)
    assert not world.refused()
    world.end("holder", "abort")
    world.run(12)
    assert world.ends["late"].finish_reason == "length"


def test_who_lacks_but_a_row_is_not_refused_as_worse_priorities_of_its_adapter_are() -> None:
    world = World(max_num_seqs=2)
    world.ask("running", 0, priority=-1)
    world.run()
    world.ask("other adapter", 1, priority=2)
    world.run()
    world.run(seconds=1.0)
    world.ask("kept out", 0, priority=3)
    world.run()
    for name in ("base", "next base"):
        world.ask(name, None, priority=-1)
    world.run()
    world.ask("better", 0, max_tokens=4)
    world.run(seconds=WAIT_S + 1)
    assert sorted(world.refused()) == ["kept out", "other adapter"]
    world.end("base", "abort")
    world.end("next base", "abort")
    world.run(12)
    assert world.ends["better"].finish_reason == "length"


def test_choices_of_an_answer_that_has_begun_are_not_refused() -> None:
    world = World(max_num_seqs=1)
    world.add(*(make_request(f"choice-{n}", 6, max_tokens=20, adapter_id=0) for n in range(2)))
    world.run()
    world.add(make_request("other", 6, max_tokens=4000, adapter_id=1, priority=-1))
    world.run()
    world.run(num_steps=40, seconds=1.0)  # 0 admits nobody until the other has had its turn
    assert world.ends["choice-0"].finish_reason == "length"
    assert world.outputs["other"]
    assert not world.outputs["choice-1"]
    world.ask("alone", 0, max_tokens=4)
    world.run(seconds=WAIT_S + 1)
    assert list(world.refused()) == ["alone"]
    world.end("other", "abort")
    world.run(num_steps=30)
    assert world.ends["choice-1"].finish_reason == "length"


def test_adapters_of_answers_that_have_begun_are_kept_when_others_are_read() -> None:
    world = World(max_num_seqs=1)
    assert world.store.kept == 3 * [set()]
    world.add(*(make_request(f"choice-{n}", 6, max_tokens=20, adapter_id=0) for n in range(2)))
    world.run()
    world.add(make_request("other", 6, max_tokens=4000, adapter_id=1, priority=-1))
    world.run()
    world.run(num_steps=40, seconds=1.0)
    assert world.outputs["other"]
    assert not world.outputs["choice-1"]
    world.ask("new", 2)
    world.run()
    world.control.open(3, AdapterSource("/y"), None)
    assert world.store.kept[-1] == {0, 1}


def test_many_requests_of_an_absent_adapter_keep_nobody_from_starting() -> None:
    world = World(max_num_waiting=2000)
    world.ask("holder", 0)
    world.run()
    for number in range(1000):
        world.ask(f"absent-{number}", 1)
    world.ask("base", None, max_tokens=4)
    world.ask("other", 0, max_tokens=4)
    world.run(num_steps=8)
    assert world.ends["base"].finish_reason == world.ends["other"].finish_reason == "length"


def test_files_that_are_gone_end_who_waits_and_nobody_else() -> None:
    world = World()
    world.store.is_holding = True
    world.ask("a", 0)
    world.ask("base", None)
    world.run()
    world.store.outcomes.append(FillFailed(0, 0, AdapterChangedError("/a/path: changed")))
    world.run()
    failed, refused = world.control.take_events()
    assert failed == AdapterFailed(0, "AdapterChangedError", "/a/path: changed")
    assert isinstance(refused, Refused)
    assert refused.kind == "AdapterNotReadyError"
    assert "cannot be read again" in refused.message
    assert "/a/path" not in refused.message, "clients learn no path of this machine"
    assert "base" not in world.ends
    world.store.is_holding = False
    world.ask("b", 1, max_tokens=4)
    world.run(num_steps=8)
    assert world.ends["b"].finish_reason == "length"
    assert not world.control.take_events()
    world.ask("c", 0, max_tokens=4)  # they are there again
    world.run(num_steps=8)
    assert world.ends["c"].finish_reason == "length"
    (opened,) = world.control.take_events()
    assert isinstance(opened, AdapterOpened)
    assert (opened.adapter_id, opened.digest, opened.is_known) == (0, "d0", True)


@pytest.mark.parametrize("is_running", [True, False])
def test_unloading_ends_requests_with_what_they_have(is_running: bool) -> None:
    world = World()
    if not is_running:
        world.ask("holder", 1)
        world.run()
    world.ask("a", 0)
    world.run()
    world.control.close(0)
    world.run()
    assert world.ends["a"].finish_reason == "abort"
    assert world.ends["a"].error is None
    assert bool(world.outputs["a"]) == is_running

"""While threads fetch, read and compile, the loop sleeps and prepares; then it is woken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_in_thread import Loop, running_loop
from octavo import LLM
from octavo.engine import adapter_control, core, core_process
from octavo.engine.messages import (
    AdapterFailed,
    AdapterOpened,
    OpenAdapter,
    Refused,
    RequestSpec,
    Shutdown,
    Submit,
)
from octavo.grammar import Grammar, Vocabulary
from octavo.lora import adapter_store
from octavo.lora.adapter_source import AdapterSource, FoundAdapter
from octavo.sampling_params import SamplingParams
from octavo.structured.compiler import GrammarCompiler
from tiny_adapters import make_adapter
from tiny_engine import request_spec
from tiny_models import make_tiny_model, tiny_config

FOREVER_S = 1000.0
GREEDY = SamplingParams(temperature=0, max_tokens=4)
CONFIG = tiny_config("llama")


class Gate:
    """What stands before it goes on when it is opened."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self._is_open = threading.Event()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*args: Any) -> Any:
            self.is_reached.set()
            assert self._is_open.wait(60)
            return function(*args)

        return wait

    def open(self) -> None:
        self._is_open.set()


class CountedEngine:
    """An engine whose turns and preparations are counted."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.core = llm._engine.core
        self.info = llm.info
        self.num_turns = 0
        self.is_prepared = threading.Event()
        plan = self.core.plan

        def counted() -> float:
            self.num_turns += 1
            return plan()

        def prepare() -> bool:
            self.is_prepared.set()
            return False

        monkeypatch.setattr(self.core, "plan", counted)
        monkeypatch.setattr(self.core, "prepare_next", prepare)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_tiny_model("llama", root / "model")
    for seed, name in enumerate(("first", "second")):
        make_adapter(root / name, CONFIG, seed=seed)
    return root


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedEngine]:
    vocabulary = Vocabulary([bytes([id % 256]) for id in range(256)], [])
    llm = LLM(
        str(folder / "model"),
        vocabulary=vocabulary,
        enable_lora=True,
        max_loras=1,
        max_cpu_loras=1,
        max_model_len=128,
        num_threads=1,
    )
    yield CountedEngine(llm, monkeypatch)
    llm.close()


def opened(loop: Loop, adapter_id: int) -> bool:
    return any(
        isinstance(event, AdapterOpened) and event.adapter_id == adapter_id for event in loop.heard
    )


def spec_with(adapter_id: int, request_id: str, **fields: Any) -> RequestSpec:
    spec = request_spec(request_id, [1, 2, 3], GREEDY, **fields)
    spec.adapter_id = adapter_id
    return spec


def test_the_loop_sleeps_and_prepares_while_a_source_does_not_answer(
    counted: CountedEngine, gate: Gate, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = FoundAdapter(folder / "first", None)
    monkeypatch.setattr(adapter_store, "find_adapter", gate.before(lambda *_: found))
    monkeypatch.setattr(core_process, "_IDLE_REPORT_S", FOREVER_S)  # nothing but a thread wakes it
    with running_loop(counted.core, counted.info) as loop:
        loop.say(OpenAdapter(1, AdapterSource("hf://slow/adapter")))
        assert gate.is_reached.wait(60)
        assert counted.is_prepared.wait(60)
        assert counted.num_turns == 0
        gate.open()
        loop.listen(lambda: opened(loop, 1))
        assert counted.num_turns <= 2
        loop.say(Shutdown())
        assert loop.status() == 0


def test_nothing_is_prepared_while_an_adapter_is_read(
    counted: CountedEngine, gate: Gate, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for as long as its turn lasts: a file system may not answer."""
    read = adapter_store.read_adapter
    monkeypatch.setattr(adapter_store, "read_adapter", gate.before(read))
    turns = counted.core._adapters._store._turns  # type: ignore[union-attr]
    monkeypatch.setattr(turns, "_limit_s", FOREVER_S)
    monkeypatch.setattr(core_process, "_QUIET_S", 0.5)  # for its thread to begin
    asked = OpenAdapter(1, AdapterSource(str(folder / "first")))
    with running_loop(counted.core, counted.info, asked) as loop:
        assert gate.is_reached.wait(60)
        assert not counted.is_prepared.wait(0.7)
        gate.open()
        assert counted.is_prepared.wait(60)
        loop.listen(lambda: opened(loop, 1))
        loop.say(Shutdown())
        assert loop.status() == 0


def test_requests_that_wait_for_files_end_in_time_and_start_when_they_are_read(
    counted: CountedEngine, gate: Gate, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_loop(counted.core, counted.info) as loop:
        for adapter_id, name in enumerate(("first", "second"), 1):
            loop.say(OpenAdapter(adapter_id, AdapterSource(str(folder / name))))
            loop.listen(lambda: opened(loop, adapter_id))  # noqa: B023
        # The first left host memory for the second, so it is read again.
        read = adapter_store.read_adapter
        monkeypatch.setattr(adapter_store, "read_adapter", gate.before(read))
        # Nothing but a thread or the right moment wakes it.
        monkeypatch.setattr(core_process, "_IDLE_REPORT_S", FOREVER_S)
        monkeypatch.setattr(core, "LONGEST_SLEEP_S", FOREVER_S)
        monkeypatch.setattr(adapter_control, "_LOOK_S", FOREVER_S)
        num_before = counted.num_turns
        loop.say(Submit([spec_with(1, "short", timeout_s=0.1)]))
        loop.listen(lambda: loop.has_ended("short"))
        with monkeypatch.context() as patch:
            patch.setattr(counted.core._adapters, "_wait_s", 0.1)
            patch.setattr(counted.core._adapters, "_next_look_s", 0.0)
            loop.say(Submit([spec_with(1, "long")]))
            loop.listen(lambda: loop.has_ended("long"))
        assert counted.num_turns - num_before <= 12
        assert loop.updates("short")[0].finish_reason == "deadline"
        (refused,) = (event for event in loop.heard if isinstance(event, Refused))
        assert (refused.request_id, refused.kind) == ("long", "AdapterNotReadyError")
        loop.say(Submit([spec_with(1, "last")]))
        gate.open()
        loop.listen(lambda: loop.has_ended("last"))
        assert loop.updates("last")[-1].finish_reason == "length"
        assert not any(isinstance(event, AdapterFailed) for event in loop.heard)


def test_a_request_starts_when_its_grammar_is_compiled_and_the_loop_sleeps_until_then(
    counted: CountedEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_grammar = GrammarCompiler._compile
    monkeypatch.setattr(GrammarCompiler, "_compile", gate.before(compile_grammar))
    monkeypatch.setattr(core_process, "_IDLE_REPORT_S", FOREVER_S)
    monkeypatch.setattr(core, "LONGEST_SLEEP_S", FOREVER_S)  # nothing but a thread wakes it
    with running_loop(counted.core, counted.info) as loop:
        spec = request_spec("a", [1, 2, 3], GREEDY, grammar=Grammar("start: /[ab]*/"))
        loop.say(Submit([spec]))
        assert gate.is_reached.wait(60)
        time.sleep(0.05)
        num_turns = counted.num_turns
        assert num_turns <= 2
        gate.open()
        loop.listen(lambda: loop.has_ended("a"))
        tokens = [token for update in loop.updates("a") for token in update.new_token_ids]
        assert bytes(tokens).strip(b"ab") == b""
        assert len(tokens) == GREEDY.max_tokens


def test_a_sleep_ends_at_the_earliest_deadline_of_those_who_wait(
    counted: CountedEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_grammar = GrammarCompiler._compile
    monkeypatch.setattr(GrammarCompiler, "_compile", gate.before(compile_grammar))
    monkeypatch.setattr(core, "LONGEST_SLEEP_S", FOREVER_S)
    engine = counted.core
    assert engine.sleep_s == FOREVER_S, "there is nobody"
    for timeout_s, id in ((None, "c"), (500.0, "a"), (200.0, "b")):
        grammar = Grammar("start: /[ab]*/")
        spec = request_spec(id, [1, 2, 3], GREEDY, grammar=grammar, timeout_s=timeout_s)
        engine.submit([spec])
        engine.plan()
        assert not engine.advance()
        longest_s = FOREVER_S if timeout_s is None else timeout_s
        assert longest_s - 100 < engine.sleep_s <= longest_s
    engine.abort(["a", "b", "c"])
    assert engine.sleep_s == 0, "there is something to tell"
    assert len(engine.step()) == 3
    assert engine.sleep_s == FOREVER_S, "deadlines of those who have ended count for nothing"


def test_offline_steps_wait_for_threads(
    counted: CountedEngine, gate: Gate, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = FoundAdapter(folder / "first", None)
    monkeypatch.setattr(adapter_store, "find_adapter", gate.before(lambda *_: found))
    monkeypatch.setattr(core, "LONGEST_SLEEP_S", 60.0)
    counted.core.open_adapter(1, AdapterSource("hf://slow/adapter"))
    threading.Timer(0.1, gate.open).start()
    while not (events := counted.core.take_adapter_events()):
        counted.core.step()
    assert isinstance(events[0], AdapterOpened)
    assert counted.num_turns <= 3
    counted.core.submit([spec_with(1, "a")])
    updates = []
    while counted.core.has_work:
        updates += counted.core.step()
    assert updates[-1].finish_reason == "length"

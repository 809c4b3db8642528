"""The loop of the engine process, run in a thread, with the test as the server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from octavo.batch import BatchPlan, Runner, StepHandle
from octavo.engine.core_process import EngineLoop
from octavo.engine.interface import ModelInfo
from octavo.engine.messages import (
    Abort,
    EngineChannel,
    FrameSplitter,
    FromEngine,
    Ready,
    Refused,
    Shutdown,
    StepReport,
    Submit,
    ToEngine,
    frame,
)
from octavo.outputs import RequestUpdate
from octavo.sampling_params import SamplingParams
from puppet_engine import INFO
from tiny_engine import TinyEngine, request_spec

GREEDY = SamplingParams(temperature=0, max_tokens=12)
LONG = SamplingParams(temperature=0, max_tokens=60)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyEngine:
    return TinyEngine(tmp_path_factory.mktemp("tiny"))


@dataclass
class Loop:
    """A loop under way and what it has said."""

    far: socket.socket
    thread: threading.Thread
    statuses: list[int]
    heard: list[Any] = field(default_factory=list)
    splitter: FrameSplitter = field(default_factory=FrameSplitter)
    decoder: Any = field(default_factory=lambda: msgspec.msgpack.Decoder(FromEngine))

    def say(self, message: ToEngine) -> None:
        self.far.sendall(frame(msgspec.msgpack.Encoder(), message))

    def listen(self, enough: Callable[[], bool]) -> None:
        """Until ``enough``, or the loop ends."""
        while not enough() and (data := self.far.recv(1 << 16)):
            self.heard += [self.decoder.decode(body) for body in self.splitter.feed(data)]

    def updates(self, request_id: str) -> list[RequestUpdate]:
        return [
            update
            for report in self.heard
            if isinstance(report, StepReport)
            for update in report.updates
            if update.request_id == request_id
        ]

    def has_ended(self, request_id: str) -> bool:
        return any(update.finish_reason for update in self.updates(request_id))

    def status(self) -> int:
        self.thread.join(60)
        return self.statuses[0]


class FailingRunner:
    """Breaks at its fourth step."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._num_steps = 0

    def execute(self, plan: BatchPlan) -> StepHandle:
        self._num_steps += 1
        if self._num_steps == 4:
            raise RuntimeError("the device is lost")
        return self._runner.execute(plan)

    def prepare_next(self) -> bool:
        return self._runner.prepare_next()

    def close(self) -> None:
        self._runner.close()


@pytest.fixture
def start(tiny: TinyEngine) -> Iterator[Callable[..., Loop]]:
    loops: list[Loop] = []

    def start(info: ModelInfo = INFO, **options: Any) -> Loop:
        near, far = socket.socketpair()
        far.settimeout(60)
        statuses: list[int] = []

        def run() -> None:
            with near:
                statuses.append(EngineLoop(tiny.core(**options), info, EngineChannel(near)).run())

        loop = Loop(far, threading.Thread(target=run), statuses)
        loops.append(loop)
        loop.thread.start()
        loop.listen(lambda: bool(loop.heard))
        assert loop.heard == [Ready(info)]
        return loop

    yield start
    for loop in loops:
        loop.far.close()
        loop.thread.join(60)


def test_shutdown_is_an_end_without_fault(start: Callable[..., Loop]) -> None:
    loop = start()
    loop.say(Submit([request_spec("a", [1, 2], LONG)]))
    loop.say(Shutdown())
    assert loop.status() == 0


def test_a_server_that_goes_away_is_an_end_without_fault(start: Callable[..., Loop]) -> None:
    loop = start()
    loop.say(Submit([request_spec("a", [1, 2], LONG)]))
    loop.far.close()
    assert loop.status() == 0


def test_an_idle_loop_says_that_it_lives(start: Callable[..., Loop]) -> None:
    loop = start()
    loop.listen(lambda: len(loop.heard) > 2)
    assert all(report.updates == [] for report in loop.heard[1:])


class PreparingRunner:
    """Has three things to prepare, and would rather not do it while there is work."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.num_left = 3
        self.events: list[str] = []

    def execute(self, plan: BatchPlan) -> StepHandle:
        self.events.append("step")
        return self._runner.execute(plan)

    def prepare_next(self) -> bool:
        self.events.append("prepare")
        self.num_left -= 1
        return self.num_left > 0

    def close(self) -> None:
        self._runner.close()


def test_an_idle_loop_prepares_until_nothing_is_left_and_hears_requests_in_between(
    tiny: TinyEngine,
) -> None:
    near, far = socket.socketpair()
    far.settimeout(60)
    runners: list[PreparingRunner] = []

    def wrap(runner: Runner) -> Runner:
        runners.append(PreparingRunner(runner))
        return runners[0]

    core = tiny.core(wrap_runner=wrap)
    # Already there when the loop begins: it goes before everything that can wait.
    far.sendall(frame(msgspec.msgpack.Encoder(), Submit([request_spec("a", [1, 2], GREEDY)])))
    statuses: list[int] = []
    thread = threading.Thread(
        target=lambda: statuses.append(EngineLoop(core, INFO, EngineChannel(near)).run())
    )
    loop = Loop(far, thread, statuses)
    thread.start()
    loop.listen(lambda: loop.has_ended("a"))
    loop.listen(lambda: runners[0].num_left == 0)
    loop.say(Shutdown())
    assert loop.status() == 0
    near.close()
    far.close()
    events = runners[0].events
    assert events == ["step"] * events.index("prepare") + ["prepare"] * 3


def test_a_request_runs_to_its_end(start: Callable[..., Loop], tiny: TinyEngine) -> None:
    loop = start()
    loop.say(Submit([request_spec("a", [1, 2, 3], GREEDY)]))
    loop.listen(lambda: loop.has_ended("a"))
    tokens = [token for update in loop.updates("a") for token in update.new_token_ids]
    assert [tokens] == tiny.generate([[1, 2, 3]], GREEDY, tiny.core())
    assert loop.heard[-1].stats.num_running == 0


def test_refusals_and_other_requests_do_not_meet(start: Callable[..., Loop]) -> None:
    loop = start()
    loop.say(Submit([request_spec("good", [1], GREEDY)]))
    loop.say(Submit([request_spec("empty", [], GREEDY)]))
    loop.say(Submit([request_spec("no-leader", [1], GREEDY, leader_id="nobody")]))
    loop.listen(lambda: loop.has_ended("good"))
    refused = [message for message in loop.heard if isinstance(message, Refused)]
    assert [(r.request_id, r.kind, r.param) for r in refused] == [
        ("empty", "InvalidRequestError", "prompt"),
        ("no-leader", "RequestFailedError", None),
    ]
    assert sum(len(update.new_token_ids) for update in loop.updates("good")) == 12


def test_an_aborted_request_is_reported_though_nothing_else_runs(
    start: Callable[..., Loop],
) -> None:
    loop = start()
    for index in range(20):
        # Together, so that no step comes between.
        spec = request_spec(str(index), [1, 2], LONG)
        both = frame(msgspec.msgpack.Encoder(), Submit([spec]))
        both += frame(msgspec.msgpack.Encoder(), Abort([spec.id]))
        loop.far.sendall(both)
        loop.listen(lambda: loop.has_ended(str(index)))  # noqa: B023
    stats = loop.heard[-1].stats
    assert (stats.num_running, stats.num_waiting, stats.num_owned_blocks) == (0, 0, 0)


def test_a_failing_step_ends_the_loop_after_its_last_words(start: Callable[..., Loop]) -> None:
    loop = start(wrap_runner=FailingRunner)
    loop.say(Submit([request_spec("a", [1, 2], LONG)]))
    loop.listen(lambda: False)
    assert loop.status() == 1
    # The end of the connection tells the server; what was drawn before has arrived.
    assert sum(len(update.new_token_ids) for update in loop.updates("a")) == 3
    assert not loop.has_ended("a")


def test_nothing_of_ended_requests_is_kept(tiny: TinyEngine) -> None:
    core = tiny.core()
    for index in range(50):
        core.submit([request_spec(str(index), [1, 2], LONG)])
        core.abort([str(index)])
        assert core.has_work
        (update,) = core.step()
        assert (update.request_id, update.finish_reason) == (str(index), "abort")
        assert not core.has_work
    assert not core._open
    core.check_integrity()

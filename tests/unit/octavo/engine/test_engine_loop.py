"""The loop of the engine process, run in a thread, with the test as the server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import msgspec
import pytest

from engine_in_thread import Loop, running_loop
from octavo.batch import BatchPlan, Runner, StepHandle
from octavo.engine import core_process
from octavo.engine.messages import Abort, Ready, Refused, Shutdown, Submit, frame
from octavo.engine.model_info import ModelInfo
from octavo.grammar import Vocabulary
from octavo.sampling_params import SamplingParams
from octavo.structured.compiler import GrammarCompiler
from puppet_engine import INFO
from tiny_engine import TinyEngine, byte_vocabulary, request_spec
from tiny_models import EOS_TOKEN_ID, VOCAB_SIZE

GREEDY = SamplingParams(temperature=0, max_tokens=12)
LONG = SamplingParams(temperature=0, max_tokens=60)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyEngine:
    return TinyEngine(tmp_path_factory.mktemp("tiny"))


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
    with contextlib.ExitStack() as loops:

        def start(info: ModelInfo = INFO, **options: Any) -> Loop:
            loop = loops.enter_context(running_loop(tiny.core(**options), info))
            loop.listen(lambda: bool(loop.heard))
            assert loop.heard == [Ready(info)]
            return loop

        yield start


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
    runners: list[PreparingRunner] = []

    def wrap(runner: Runner) -> Runner:
        runners.append(PreparingRunner(runner))
        return runners[0]

    # Already there when the loop begins: it goes before everything that can wait.
    first = Submit([request_spec("a", [1, 2], GREEDY)])
    with running_loop(tiny.core(wrap_runner=wrap), INFO, first) as loop:
        loop.listen(lambda: loop.has_ended("a"))
        loop.listen(lambda: runners[0].num_left == 0)
        loop.say(Shutdown())
        assert loop.status() == 0
    events = runners[0].events
    assert events == ["step"] * events.index("prepare") + ["prepare"] * 3


def test_what_grammars_need_is_loaded_after_a_long_quiet_and_no_earlier(
    tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: SimpleQueue[None] = SimpleQueue()

    def vocabulary() -> Vocabulary:
        asked.put(None)
        return byte_vocabulary()

    for quiet_s in (3600.0, 0.05):
        monkeypatch.setattr(core_process, "_IDLE_REPORT_S", quiet_s)
        grammars = GrammarCompiler(vocabulary, VOCAB_SIZE, [EOS_TOKEN_ID])
        core = tiny.core(grammars=grammars)
        with running_loop(core, INFO, Submit([request_spec("a", [1, 2], GREEDY)])) as loop:
            loop.listen(lambda: loop.has_ended("a"))
            if quiet_s < 1:
                asked.get(timeout=60)
            loop.say(Shutdown())
            assert loop.status() == 0
        assert asked.empty()


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
    assert not list(core._scheduler.requests())
    core.check_integrity()

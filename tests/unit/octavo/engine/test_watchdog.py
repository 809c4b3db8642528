"""A stuck engine is noticed in time and ended, everybody answered; a slow one is left in peace."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from octavo.config import EngineConfig
from octavo.engine import watchdog as watchdog_module
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.interface import EngineState
from octavo.engine.messages import StepReport
from octavo.engine.step_pace import (
    RED_BEFORE_S,
    SHORTEST_LIMIT_S,
    UNMEASURED_LIMIT_S,
    StepPace,
)
from octavo.engine.watchdog import TICK_S, Watchdog
from octavo.errors import EngineDeadError
from octavo.sampling_params import SamplingParams
from polling import until
from puppet_engine import puppet_engine
from tiny_models import make_tiny_model

SUPPORT = Path(__file__).parents[3] / "support"


def silence(watchdog: Watchdog, seconds: float, has_work: bool = True) -> None:
    """So long nothing is heard, watched all the time."""
    now_s = watchdog._ticked_s
    for _ in range(round(seconds / TICK_S)):
        now_s += TICK_S
        watchdog.tick(now_s, has_work)


# ---- The limits, on a simulated clock -------------------------------------------------------


def test_stuck_step_is_red_and_then_given_up_within_ten_seconds() -> None:
    watchdog = Watchdog(100.0)
    silence(watchdog, SHORTEST_LIMIT_S - RED_BEFORE_S)
    assert not watchdog.is_late
    silence(watchdog, TICK_S)
    assert (watchdog.is_late, watchdog.is_stuck) == (True, False)
    silence(watchdog, RED_BEFORE_S)
    assert watchdog.is_stuck
    assert watchdog.silent_s <= 10.0


def test_idle_engine_is_never_late_and_its_idle_time_does_not_count() -> None:
    watchdog = Watchdog(0.0)
    silence(watchdog, 3600.0, has_work=False)
    silence(watchdog, 5.0)
    assert not watchdog.is_late
    silence(watchdog, 5.0)
    assert watchdog.is_stuck


def test_step_that_was_announced_as_long_may_be_long() -> None:
    watchdog = Watchdog(0.0)
    watchdog.hear(60.0)
    silence(watchdog, 56.0)
    assert not watchdog.is_late
    silence(watchdog, 5.0)
    assert watchdog.is_stuck
    watchdog.hear()
    assert watchdog.limit_s == SHORTEST_LIMIT_S
    assert not watchdog.is_late


def test_watcher_that_was_stopped_itself_draws_no_conclusion() -> None:
    watchdog = Watchdog(0.0)
    watchdog.tick(3600.0, True)
    assert not watchdog.is_late


def test_first_step_of_all_may_be_long() -> None:
    assert StepPace().limit_s(1) == UNMEASURED_LIMIT_S


def test_prefill_larger_than_any_before_gets_time_in_proportion() -> None:
    pace = StepPace()
    pace.record(8, 0.5)
    assert pace.limit_s(8) == SHORTEST_LIMIT_S
    assert pace.limit_s(1) == SHORTEST_LIMIT_S
    assert pace.limit_s(8 * 128) > 128 * 0.5
    pace.record(8 * 128, 4.0)  # measured: the bound is not needed any more
    assert pace.limit_s(8 * 128) == pytest.approx(5.0 + 3 * 4.0)


def test_one_slow_step_is_forgotten_in_time() -> None:
    pace = StepPace()
    pace.record(4, 60.0)
    assert pace.limit_s(4) > 60.0
    for _ in range(400):
        pace.record(4, 0.01)
    assert pace.limit_s(4) == SHORTEST_LIMIT_S


# ---- With processes --------------------------------------------------------------------------


class HangingEngine(AsyncEngine):
    """Its engine process has a runner that hangs."""

    async def _start_process(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        path = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.spawned = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hanging_core_process",
            str(theirs.fileno()),
            pass_fds=[theirs.fileno()],
            env=self._environment() | {"PYTHONPATH": path},
            stderr=asyncio.subprocess.PIPE,
        )
        return self.spawned


async def test_hanging_runner_ends_the_engine_with_everybody_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From idle to busy: the engine has served, rested, and hangs in its next step."""
    model = make_tiny_model("llama", tmp_path / "model")
    engine = HangingEngine(EngineConfig(model=str(model), max_model_len=128, num_threads=1))
    await engine.start()
    try:
        await engine.wait_ready()
        monkeypatch.setattr(watchdog_module, "SHORTEST_LIMIT_S", 3.0)
        monkeypatch.setattr(watchdog_module, "RED_BEFORE_S", 1.5)
        params = SamplingParams(max_tokens=4, ignore_eos=True)

        async def ask(prompt: list[int], request_id: str) -> int:
            return len([e async for e in engine.generate([prompt], params, request_id=request_id)])

        assert await ask([1, 2, 3], "before") > 0
        asking = [asyncio.create_task(ask([7, 8], f"r{i}")) for i in range(3)]
        await until(lambda: engine.stats().is_late)
        assert engine.state is EngineState.READY  # red, and not given up yet
        for task in asking:
            with pytest.raises(EngineDeadError):
                await task
        assert engine.state is EngineState.DEAD
        assert await engine.spawned.wait() < 0
        assert engine.spawned.stderr is not None
        where = (await engine.spawned.stderr.read()).decode()
        assert "hanging_core_process.py" in where  # it said where it was
        assert "in execute" in where
        assert "taken for stuck" in caplog.text
    finally:
        await engine.close()


async def test_long_step_that_was_announced_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "SHORTEST_LIMIT_S", 0.8)
    monkeypatch.setattr(watchdog_module, "RED_BEFORE_S", 0.3)
    async with puppet_engine(make_tiny_model("llama", tmp_path / "model")) as engine:
        params = SamplingParams(max_tokens=4)
        events = engine.generate([[1, 2]], params, request_id="r")
        asking = asyncio.create_task(anext(events))
        await engine.hear()
        engine.say(StepReport([], limit_s=600.0))
        await asyncio.sleep(1.6)
        assert not engine.stats().is_late
        engine.report()  # the long step has ended; the next one says nothing
        with pytest.raises(EngineDeadError):
            await asking

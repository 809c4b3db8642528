"""Ctrl-C between steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest

from octavo.engine.held_interrupt import HeldInterrupt


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def held(*steps: Callable[[HeldInterrupt], object]) -> list[int]:
    """Which of the steps were done to their end before KeyboardInterrupt came."""
    done: list[int] = []

    def run() -> None:
        with HeldInterrupt() as interrupt:
            for index, step in enumerate(steps):
                step(interrupt)
                done.append(index)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return done


def press(_: HeldInterrupt) -> None:
    press_ctrl_c()


def test_ctrl_c_waits_for_the_check() -> None:
    assert held(HeldInterrupt.check, press, HeldInterrupt.check, press) == [0, 1]


def test_ctrl_c_that_nobody_checked_for_is_raised_at_the_end() -> None:
    assert held(press, id) == [0, 1]


def test_a_second_ctrl_c_waits_for_nothing() -> None:
    assert held(press, press, id) == [0]


def test_an_error_of_its_own_is_what_the_caller_hears_of() -> None:
    def run() -> None:
        with HeldInterrupt():
            press_ctrl_c()
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        run()


def test_a_handler_of_the_users_stays() -> None:
    heard = []

    def handler(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        with HeldInterrupt() as interrupt:
            press_ctrl_c()
            interrupt.check()
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]


def test_other_threads_than_the_main_one_leave_signals_alone() -> None:
    def enter() -> None:
        with HeldInterrupt():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    with ThreadPoolExecutor(1) as pool:
        pool.submit(enter).result()

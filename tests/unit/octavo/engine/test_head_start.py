"""What is begun early helps a start, and cannot harm it."""

from __future__ import annotations

import threading

from octavo.config import EngineConfig
from octavo.engine.head_start import HeadStart, may_use_gpu


def test_all_that_was_begun_has_ended_when_waited_for() -> None:
    gate, ended = threading.Event(), list[str]()

    def first() -> None:
        gate.wait(10)
        ended.append("first")

    def second() -> None:
        ended.append("second")
        gate.set()

    head_start = HeadStart()
    head_start.begin(first)
    head_start.begin(second)
    head_start.wait()
    assert ended == ["second", "first"]
    head_start.wait()


def test_what_fails_is_left_to_whoever_needs_it() -> None:
    def fail() -> None:
        raise OSError("no such library")

    head_start = HeadStart()
    head_start.begin(fail)
    head_start.wait()


def test_nobody_who_asks_for_the_cpu_opens_a_card() -> None:
    assert not may_use_gpu(EngineConfig(model="m", device="cpu"))

"""Threads that read adapters: that each job finds one."""

from __future__ import annotations

import random
import threading
import time
from types import FrameType
from typing import Any

import pytest

from octavo.lora import reader_threads
from octavo.lora.reader_threads import AT_A_TIME, ReaderThreads


def test_no_job_waits_for_those_without_an_answer_whenever_threads_became_idle() -> None:
    pauses = random.Random(0)

    def slowed(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename == reader_threads.__file__:
            time.sleep(pauses.random() / 1000)
        return slowed

    threading.settrace(slowed)
    try:
        for _ in range(100):
            _begin_all_after_two_short_ones(pauses.random() / 100)
    finally:
        threading.settrace(None)  # type: ignore[arg-type]


def _begin_all_after_two_short_ones(pause_s: float) -> None:
    begun = [threading.Event() for _ in range(AT_A_TIME)]
    answer = threading.Event()

    def work(job: threading.Event) -> None:
        job.set()
        if job in begun:
            answer.wait()

    threads = ReaderThreads(work, "reader")
    try:
        for _ in range(2):
            threads.put(threading.Event())
            time.sleep(pause_s)
        for job in begun:
            threads.put(job)
        assert all(job.wait(5.0) for job in begun)
    finally:
        answer.set()
        threads.stop()
        threads.join(5.0)


def test_where_the_system_starts_no_more_threads_jobs_wait_for_those_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    answer = threading.Event()
    done: list[str] = []
    all_done = threading.Event()

    def work(job: str) -> None:
        answer.wait()
        done.append(job)
        if len(done) == 2:
            all_done.set()

    threads = ReaderThreads(work, "reader")
    monkeypatch.setattr(threading.Thread, "start", start)
    threads.put("first")
    threads.put("second")
    answer.set()
    assert all_done.wait(60.0)
    assert done == ["first", "second"]
    threads.stop()
    threads.join(5.0)

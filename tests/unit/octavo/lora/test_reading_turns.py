from __future__ import annotations

import threading
import time

import pytest

from octavo.lora.reading_turns import ReadingTurns


@pytest.mark.parametrize(("num_bytes", "at_once"), [(100, 1), (51, 1), (50, 2), (30, 3), (1000, 1)])
def test_as_many_read_at_a_time_as_fit_and_one_whatever_it_takes(
    num_bytes: int, at_once: int
) -> None:
    turns = ReadingTurns(limit=100, limit_s=1000.0)
    num_reading, seen, lock = 0, list[int](), threading.Lock()

    def read() -> None:
        nonlocal num_reading
        for _ in range(50):
            with turns.turn(num_bytes):
                with lock:
                    num_reading += 1
                    seen.append(num_reading)
                time.sleep(0.0005)
                with lock:
                    num_reading -= 1

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 200
    assert max(seen) == at_once


def test_a_large_one_comes_to_its_turn_among_small_ones() -> None:
    turns = ReadingTurns(limit=100, limit_s=1000.0)
    is_over, has_begun = threading.Event(), threading.Event()
    num_read, lock = 0, threading.Lock()

    def read_small() -> None:
        nonlocal num_read
        while not is_over.is_set():
            with turns.turn(40):
                time.sleep(0.001)
            with lock:
                num_read += 1

    def read_large() -> None:
        with turns.turn(90):
            has_begun.set()

    small = [threading.Thread(target=read_small) for _ in range(4)]
    for thread in small:
        thread.start()
    while num_read < 20:
        time.sleep(0.001)
    large = threading.Thread(target=read_large)
    large.start()
    try:
        assert has_begun.wait(60)
    finally:
        is_over.set()
        for thread in [*small, large]:
            thread.join(60)


def test_a_turn_that_does_not_end_is_taken_and_its_end_takes_nobody_elses() -> None:
    turns = ReadingTurns(limit=0, limit_s=0.01)
    is_reading, may_end, third_reads = (threading.Event() for _ in range(3))

    def read_for_long() -> None:
        with turns.turn(1):
            is_reading.set()
            assert may_end.wait(60)

    def read_third() -> None:
        with turns.turn(1):
            third_reads.set()

    slow = threading.Thread(target=read_for_long)
    slow.start()
    assert is_reading.wait(60)
    turns._limit_s = 1000.0  # the next turn is nobody's to take
    with turns.turn(1):
        third = threading.Thread(target=read_third)
        may_end.set()
        slow.join(60)
        third.start()
        assert not third_reads.wait(0.05)
    assert third_reads.wait(60)
    third.join(60)


def test_a_turn_ends_with_an_error_too() -> None:
    turns = ReadingTurns(limit=0, limit_s=1000.0)
    for _ in range(2):
        try:
            with turns.turn(1):
                raise OSError
        except OSError:
            pass

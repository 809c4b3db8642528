from __future__ import annotations

import threading
import time

from octavo.lora.reading_turns import ReadingTurns


def test_one_reads_at_a_time() -> None:
    turns = ReadingTurns(limit_s=1000.0)
    num_reading, seen = 0, list[int]()

    def read() -> None:
        nonlocal num_reading
        for _ in range(50):
            with turns.turn():
                num_reading += 1
                time.sleep(0.0001)
                seen.append(num_reading)
                num_reading -= 1

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [1] * 200


def test_a_turn_that_does_not_end_is_taken_and_its_end_takes_nobody_elses() -> None:
    turns = ReadingTurns(limit_s=0.01)
    is_reading, may_end, third_reads = (threading.Event() for _ in range(3))

    def read_for_long() -> None:
        with turns.turn():
            is_reading.set()
            assert may_end.wait(60)

    def read_third() -> None:
        with turns.turn():
            third_reads.set()

    slow = threading.Thread(target=read_for_long)
    slow.start()
    assert is_reading.wait(60)
    with turns.turn():
        turns._limit_s = 1000.0  # this turn is nobody's to take
        third = threading.Thread(target=read_third)
        may_end.set()
        slow.join(60)
        third.start()
        assert not third_reads.wait(0.05)
    assert third_reads.wait(60)
    third.join(60)


def test_a_turn_ends_with_an_error_too() -> None:
    turns = ReadingTurns(limit_s=1000.0)
    for _ in range(2):
        try:
            with turns.turn():
                raise OSError
        except OSError:
            pass

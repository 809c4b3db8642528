from __future__ import annotations

import gc
import os
import threading

import pytest

from octavo.engine.waker import Waker


def test_who_is_woken_before_it_waits_does_not_wait() -> None:
    waker = Waker()
    for _ in range(100_000):  # more than the pipe holds: nobody who wakes waits
        waker.wake()
    waker.wait(1000.0)
    waker.wait(0.0)
    with pytest.raises(BlockingIOError):  # all of it is taken at once
        os.read(waker.fileno(), 1)


def test_a_thread_wakes_who_waits() -> None:
    waker = Waker()
    threading.Timer(0.05, waker.wake).start()
    waker.wait(1000.0)


def test_descriptors_are_open_for_as_long_as_somebody_may_write_to_them() -> None:
    waker = Waker()
    wake, read_end = waker.wake, waker.fileno()
    del waker
    gc.collect()
    wake()
    os.fstat(read_end)
    del wake
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read_end)

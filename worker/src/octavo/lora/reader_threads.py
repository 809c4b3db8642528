"""Threads that read adapters: a few at a time, and others in the place of those that get no answer.

A file system that does not answer keeps a thread for as long as it likes, and ends with no error.
So there is one more thread for each job that finds none idle, up to a limit, and jobs take turns
(:mod:`octavo.lora.reading_turns`), which end with the job or after a while. Knows nothing of jobs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from octavo.lora.reading_turns import ReadingTurns

Job = TypeVar("Job")
AT_A_TIME = 4
"""That make progress."""
MOST = 16
"""In all, those without an answer among them. Beyond, jobs wait until one comes; each may hold a
file in memory."""
LIMIT_S = 10.0
"""After which a job counts as one without an answer. Longer than those at a time may wait for each
other's turn at memory."""


class ReaderThreads(Generic[Job]):
    """``work`` is called with each job, and raises nothing, by threads that end no program's
    end."""

    def __init__(self, work: Callable[[Job], None], name: str, limit_s: float = LIMIT_S) -> None:
        self._work = work
        self._name = name
        self._turns = ReadingTurns(AT_A_TIME, limit_s)
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        """That nobody has taken."""
        self._is_stopping = False
        self._num_busy = 0
        self._threads: list[threading.Thread] = []
        self._start()

    def put(self, job: Job) -> None:
        """Have it done."""
        with self._changed:
            self._jobs.append(job)
            num_idle = len(self._threads) - self._num_busy
            if len(self._jobs) > num_idle and len(self._threads) < MOST:
                with contextlib.suppress(RuntimeError):  # the system has no more; the job waits
                    self._start()
            self._changed.notify()

    def stop(self) -> None:
        """Begin nothing more; may be called twice."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def join(self, limit_s: float) -> None:
        """Wait so long, in all, for threads that have an answer."""
        deadline_s = time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_stopping)
                if self._is_stopping:
                    return
                job = self._jobs.popleft()
                self._num_busy += 1
            with self._turns.turn(1):
                self._work(job)
            with self._changed:
                self._num_busy -= 1

"""Threads that read adapters: a few at a time, and others in the place of those that get no answer.

A file system that does not answer keeps a thread for as long as it likes, and ends with no error.
So there is one more thread for each job that finds none idle, up to a limit, and jobs take turns
(:mod:`octavo.lora.reading_turns`), which end with the job or after a while. Knows nothing of jobs.
"""

from __future__ import annotations

import queue
import threading
import time
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
    """``work`` is called with each job, by threads that end no program's end."""

    def __init__(self, work: Callable[[Job], None], name: str, limit_s: float = LIMIT_S) -> None:
        self._work = work
        self._name = name
        self._turns = ReadingTurns(AT_A_TIME, limit_s)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        """None: the thread that takes it ends, and leaves it to the others."""
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def put(self, job: Job) -> None:
        """Have it done; one thread calls this."""
        self._jobs.put(job)
        if not self._idle.acquire(blocking=False) and len(self._threads) < MOST:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Begin nothing more; may be called twice."""
        self._jobs.put(None)

    def join(self, limit_s: float) -> None:
        """Wait so long, in all, for threads that have an answer."""
        deadline_s = time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _run(self) -> None:
        while (job := self._next()) is not None:
            with self._turns.turn(1):
                self._work(job)
        self._jobs.put(None)

    def _next(self) -> Job | None:
        try:
            return self._jobs.get_nowait()
        except queue.Empty:
            self._idle.release()
            return self._jobs.get()

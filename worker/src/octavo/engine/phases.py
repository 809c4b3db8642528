"""The phases of loading: timed, and told to whoever listens."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from octavo.engine.messages import FromEngine, PhaseFinished, PhaseStarted

_log = logging.getLogger(__name__)
Report = Callable[[FromEngine], None]


class Phases:
    """A phase is the body of ``with phases(name, detail)``; of one that fails no end is told."""

    def __init__(self, report: Report) -> None:
        self.tell = report
        """Says anything else."""

    @contextlib.contextmanager
    def __call__(self, name: str, detail: str = "") -> Iterator[None]:
        self.tell(PhaseStarted(name, detail))
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.tell(PhaseFinished(name, seconds))
        _log.debug("%s: %.2f s (%s)", name, seconds, detail)

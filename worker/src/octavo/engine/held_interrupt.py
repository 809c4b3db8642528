"""Ctrl-C between steps: one that broke into a step would leave it half done.

Knows a signal and the main thread; knows nothing of what is not to be broken. Torch-free.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class HeldInterrupt:
    """While entered, Ctrl-C waits for :meth:`check`, or for the exit, and is raised there.

    A second one is raised at once, as what is inside may hang. Nothing changes in threads that
    Python does not interrupt, nor where Ctrl-C means something else than KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._has_come = False
        self._is_ours = False

    def __enter__(self) -> HeldInterrupt:
        is_main = threading.current_thread() is threading.main_thread()
        self._is_ours = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._is_ours:
            signal.signal(signal.SIGINT, self._hold)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C has come."""
        if self._has_come:
            self._has_come = False
            raise KeyboardInterrupt

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self._has_come:
            raise KeyboardInterrupt
        self._has_come = True

"""Lets threads wake the one loop that takes in what they have done, wherever it waits.

Knows a pipe; knows nothing of what has been done: the loop looks. A descriptor rather than an
event, as a loop that serves waits for its socket too. Torch-free.
"""

from __future__ import annotations

import contextlib
import os
import select
import weakref

_MANY_BYTES = 1 << 16
"""As many as a pipe holds."""


class Waker:
    """Whoever wakes nobody yet wakes the next that waits. Of :meth:`wake` thread-safe.

    Its descriptors are closed when nobody has it any more, and not before: a thread that was left
    behind would write to whatever has their numbers by then.
    """

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        for end in (self._read_end, self._write_end):
            os.set_blocking(end, False)
            weakref.finalize(self, os.close, end)
        self._poll = select.poll()  # select() takes no numbers above 1023
        self._poll.register(self._read_end, select.POLLIN)

    def fileno(self) -> int:
        """Readable when the loop is to wake up; then :meth:`clear`."""
        return self._read_end

    def wake(self) -> None:
        """There is something to take in. To be called after it can be seen."""
        with contextlib.suppress(BlockingIOError):  # enough has been said
            os.write(self._write_end, b"\0")

    def clear(self) -> None:
        """Before looking at what there is: what comes later wakes again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_end, _MANY_BYTES)

    def wait(self, timeout_s: float) -> None:
        """Until woken, at most so long."""
        self._poll.poll(1e3 * timeout_s)
        self.clear()

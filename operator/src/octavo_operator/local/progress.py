"""What local mode says on stderr: a moving line on a terminal, a line per event elsewhere."""

from __future__ import annotations

import shutil
import time
from typing import Final, TextIO

_SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Progress:
    """Events stay; the moving line shows the latest of them and is wiped by the next."""

    def __init__(self, stream: TextIO, *, is_terminal: bool) -> None:
        self._stream = stream
        self._is_terminal = is_terminal
        self._started = time.monotonic()
        self._moving = ""
        self._turn = 0

    def event(self, text: str) -> None:
        """One line that stays."""
        self._wipe()
        elapsed_s = time.monotonic() - self._started
        self._write(f"[{elapsed_s:6.1f} s] {text}\n")
        self._moving = ""

    def show(self, text: str) -> None:
        """The state of something under way; left out where there is no terminal."""
        self._moving = text
        self.tick()

    def tick(self) -> None:
        """Draw the moving line anew."""
        if not self._is_terminal or not self._moving:
            return
        self._turn += 1
        width = shutil.get_terminal_size().columns
        line = f"{_SPINNER[self._turn % len(_SPINNER)]} {self._moving}"[: width - 1]
        self._write(f"\r\x1b[K{line}")

    def settle(self) -> None:
        """Nothing is under way any more."""
        self._wipe()
        self._moving = ""

    def _wipe(self) -> None:
        if self._is_terminal and self._moving:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

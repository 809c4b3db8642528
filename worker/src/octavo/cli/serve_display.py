"""What ``octavo serve`` tells the person who started it: a live line on a terminal, log lines
elsewhere."""

from __future__ import annotations

import logging
import time
from typing import TextIO

from octavo.engine.interface import LoadProgress
from octavo.logs import log_event

_logger = logging.getLogger("octavo.serve")
_BAR_WIDTH = 24
_ERASE_LINE = "\r\x1b[K"
DESCRIPTIONS = {
    # Every phase there is; see octavo.engine.messages.PhaseStarted.
    "import": "Starting",
    "files": "Finding files",
    "weights": "Loading weights",
    "kernels": "Preparing kernels",
    "kv_cache": "Reserving the KV cache",
    "graphs": "Capturing steps",
    "warmup": "Warming up",
    "adapter_memory": "Reserving host memory for adapters",
    "adapters": "Loading adapters",
}


class ServeDisplay:
    """Implements :class:`octavo.server.lifecycle.Listener` for people."""

    def __init__(self, stream: TextIO, url: str, *, is_plain: bool = False) -> None:
        self._stream = stream
        self._url = url
        self._is_live = stream.isatty() and not is_plain
        self._started_s = time.monotonic()
        self._told: set[str] = set()
        self._has_line = False

    def loading(self, progress: LoadProgress) -> None:
        """Finished phases become lines; the one under way is drawn over and over."""
        for phase, seconds in progress.finished.items():
            if phase not in self._told:
                self._told.add(phase)
                self._tell_finished(phase, seconds)
        if self._is_live and progress.phase and progress.phase not in self._told:
            self._draw(progress)

    def ready(self, model: str) -> None:
        """Where to send requests."""
        seconds = time.monotonic() - self._started_s
        if self._is_live:
            self._say(
                f"Serving {model} on {self._url} after {seconds:.1f} s. Ctrl-C stops.\n"
                f"Talk to it in another terminal: octavo chat --url {self._url}"
            )
        else:
            log_event(_logger, "ready", model=model, url=self._url, seconds=round(seconds, 2))

    def draining(self, num_open: int, timeout_s: float) -> None:
        """What is waited for."""
        if not self._is_live:
            log_event(_logger, "draining", open_requests=num_open, timeout_s=timeout_s)
        elif num_open:
            noun = "request" if num_open == 1 else "requests"
            wait = f"Waiting up to {timeout_s:.0f} s for {num_open} open {noun}"
            self._say(f"{wait}; Ctrl-C again ends now.")
        else:
            self._say("Stopping.")

    def _tell_finished(self, phase: str, seconds: float) -> None:
        if self._is_live:
            self._say(f"{_describe(phase)}: {seconds:.1f} s")
        else:
            log_event(_logger, "loaded", phase=phase, seconds=round(seconds, 2))

    def _say(self, text: str) -> None:
        """Whole lines, in the place of the live one."""
        erase = _ERASE_LINE if self._has_line else ""
        self._has_line = False
        self._stream.write(f"{erase}{text}\n")
        self._stream.flush()

    def _draw(self, progress: LoadProgress) -> None:
        line = _describe(progress.phase)
        if progress.fraction is not None:
            filled = round(_BAR_WIDTH * min(1.0, max(0.0, progress.fraction)))
            bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
            line += f" {bar} {progress.fraction:4.0%}"
        if progress.detail:
            line += f"  {progress.detail[:60]}"
        # Logs that are written meanwhile begin where the line does: in its place.
        self._stream.write(_ERASE_LINE + line + "\r")
        self._stream.flush()
        self._has_line = True


def _describe(phase: str) -> str:
    return DESCRIPTIONS.get(phase, phase)

"""What is shown while a model loads, on a terminal and elsewhere."""

from __future__ import annotations

import io
import logging

import pytest

from octavo.cli.serve_display import ServeDisplay
from octavo.engine.interface import LoadProgress
from octavo.logs import configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def load(display: ServeDisplay) -> None:
    display.loading(LoadProgress("files", "m"))
    display.loading(LoadProgress("weights", "model.gguf", 0.5, {"files": 0.25}))
    display.loading(LoadProgress("weights", "model.gguf", 0.75, {"files": 0.25}))
    display.loading(LoadProgress("", "", None, {"files": 0.25, "weights": 1.5}))
    display.ready("toy")
    display.draining(2, 30.0)


def test_a_log_line_takes_the_bars_place(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    terminal = Terminal()
    configure_logging(stream=terminal)
    ServeDisplay(terminal, "http://127.0.0.1:8000").loading(LoadProgress("adapters", "1 of 2", 0.5))
    logging.getLogger("octavo").warning("short")
    *_, bar, line = terminal.getvalue().split("\r")
    assert bar.endswith("1 of 2")
    assert line.startswith("\x1b[K")
    assert line.endswith("WARNING short\n")


def test_terminal_shows_a_bar_then_lines_that_stay() -> None:
    terminal = Terminal()
    load(ServeDisplay(terminal, "http://127.0.0.1:8000"))
    text = terminal.getvalue()
    assert "Loading weights ████████████░░░░░░░░░░░░  50%  model.gguf" in text
    lines = [line.rpartition("\x1b[K")[2] for line in text.split("\n")[:-1]]
    assert lines[:2] == ["Finding files: 0.2 s", "Loading weights: 1.5 s"]
    assert lines[2].startswith("Serving toy on http://127.0.0.1:8000 after ")
    assert lines[-1] == "Waiting up to 30 s for 2 open requests; Ctrl-C again ends now."


@pytest.mark.parametrize(("stream", "is_plain"), [(io.StringIO(), False), (Terminal(), True)])
def test_elsewhere_each_event_is_one_log_line(
    caplog: pytest.LogCaptureFixture, stream: io.StringIO, is_plain: bool
) -> None:
    caplog.set_level(logging.INFO, logger="octavo")
    load(ServeDisplay(stream, "http://127.0.0.1:8000", is_plain=is_plain))
    assert stream.getvalue() == ""
    assert [record.getMessage() for record in caplog.records] == [
        "loaded",
        "loaded",
        "ready",
        "draining",
    ]

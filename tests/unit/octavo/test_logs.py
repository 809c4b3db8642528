"""One event, one line, whatever is in its fields."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from octavo.logs import configure_logging, log_event

_logger = logging.getLogger("octavo.test")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("octavo")
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def lines(log_format: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(log_format, level, stream)
    return stream


def test_text_line_quotes_what_could_be_taken_for_another_field() -> None:
    stream = lines("text")
    log_event(_logger, "ready", model="a b", path="/x", forged='1" status="200', line="a\nb")
    (line,) = stream.getvalue().splitlines()
    assert line[12:] == (' INFO ready model="a b" path=/x forged="1\\" status=\\"200" line="a\\nb"')


def test_event_cannot_break_the_line() -> None:
    stream = lines("text")
    log_event(_logger, "one\ntwo")
    assert len(stream.getvalue().splitlines()) == 1


def test_json_line_is_one_object() -> None:
    stream = lines("json")
    log_event(_logger, "ready", level=logging.WARNING, seconds=1.5, path=io.StringIO)
    entry = json.loads(stream.getvalue())
    assert entry["event"] == "ready"
    assert entry["level"] == "warning"
    assert entry["logger"] == "octavo.test"
    assert entry["seconds"] == 1.5
    assert entry["path"] == "<class '_io.StringIO'>"


def test_exceptions_are_told_in_both_formats() -> None:
    for log_format in ("text", "json"):
        stream = lines(log_format)
        try:
            raise ValueError("wrong")
        except ValueError:
            _logger.exception("failed")
        assert "ValueError: wrong" in stream.getvalue()


def test_levels_hold_for_us_and_strangers_speak_from_warnings_up() -> None:
    stream = lines("text", "error")
    log_event(_logger, "quiet")
    logging.getLogger("uvicorn.error").info("quiet")
    logging.getLogger("uvicorn.error").warning("loud")
    assert [line.rsplit(maxsplit=1)[1] for line in stream.getvalue().splitlines()] == ["loud"]

"""Log lines: one a event, for people or as JSON for programs. Never a prompt, never an answer.

Knows formats; knows nothing of what is logged. ``log_event`` is the only way to attach fields.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

import msgspec

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


def configure_logging(
    log_format: str = "text",
    level: str = "info",
    stream: TextIO | None = None,
    *,
    withholds_messages: bool = False,
) -> None:
    """Send all log lines of this process to ``stream`` (standard error), in one format.

    ``withholds_messages``: of exceptions that are not ours tell the kind and the place only, since
    what they say may quote a request. For a process that holds prompts.

    uvicorn's own lines join in from warnings up: what it says at the info level, we say better.
    """
    target = sys.stderr if stream is None else stream
    handler = _TerminalHandler(target) if target.isatty() else logging.StreamHandler(target)
    kind = JsonFormatter if log_format == "json" else TextFormatter
    handler.setFormatter(kind(withholds_messages))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("octavo").setLevel(level.upper())


def log_event(
    logger: logging.Logger, event: str, *, level: int = logging.INFO, **fields: Any
) -> None:
    """One event with its fields; costs a comparison when the level is off."""
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields})


class _TerminalHandler(logging.StreamHandler[TextIO]):
    """Takes the place of a line that is drawn over and over, where the cursor stands in one."""

    def format(self, record: logging.LogRecord) -> str:
        return "\x1b[K" + super().format(record)


class _Formatter(logging.Formatter):
    def __init__(self, withholds_messages: bool = False) -> None:
        super().__init__()
        self._withholds_messages = withholds_messages

    def formatException(self, ei: Any) -> str:
        if not self._withholds_messages:
            return super().formatException(ei)
        return "".join(_without_messages(ei[1])).rstrip()


class TextFormatter(_Formatter):
    """``12:03:04.250 INFO model ready seconds=1.9``."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = (
            f"{clock}.{int(record.msecs):03d} {record.levelname} {_one_line(record.getMessage())}"
        )
        for name, value in _fields(record).items():
            line += f" {name}={_plain(value)}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(_Formatter):
    """One object a line: time (seconds since 1970), level, logger, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry, enc_hook=str).decode()


def _without_messages(error: BaseException | None) -> Iterator[str]:
    """A traceback, causes first, that names what was raised where, and nothing it says."""
    seen: set[int] = set()
    chain: list[BaseException] = []
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    for each in reversed(chain):
        yield "Traceback (most recent call last):\n"
        yield from traceback.format_tb(each.__traceback__)
        yield f"{type(each).__qualname__} (what it says is withheld; --log-prompts shows it)\n"
        if isinstance(each, BaseExceptionGroup):
            for inner in each.exceptions:
                yield from _without_messages(inner)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _plain(value: object) -> str:
    """Bare where that is clear, else quoted, so that no value can forge another field."""
    text = str(value)
    is_clear = text.isprintable() and text and not any(mark in text for mark in ' "=')
    return text if is_clear else msgspec.json.encode(text).decode()

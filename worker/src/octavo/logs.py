"""Log lines: one a event, for people or as JSON for programs. Never a prompt, never an answer.

Knows formats; knows nothing of what is logged. ``log_event`` is the only way to attach fields.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

import msgspec

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


def configure_logging(
    log_format: str = "text", level: str = "info", stream: TextIO | None = None
) -> None:
    """Send all log lines of this process to ``stream`` (standard error), in one format.

    uvicorn's own lines join in from warnings up: what it says at the info level, we say better.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
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


class TextFormatter(logging.Formatter):
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


class JsonFormatter(logging.Formatter):
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

"""The file that a batch's answers are written to, one JSON object a line.

A line is written whole and handed to the system at once, so a process that is killed leaves all
answers but at most a torn last line, which going on cuts off.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec

from octavo.errors import ConfigError


class BatchOutput:
    """A context; :meth:`write` within it."""

    def __init__(self, path: Path, *, resumes: bool) -> None:
        """Raises ConfigError for a file that has something in it, unless it is gone on with."""
        self._path = path
        self.answered: set[str] = set()
        """Of a file that is gone on with, the custom_ids of lines that have a response, and what
        was said of lines that could not be asked."""
        self.num_failed = 0
        """Answers that are none, those of a file that is gone on with among them."""
        try:
            if path.exists() and path.stat().st_size and not resumes:
                raise ConfigError(
                    f"--output-file is {path}, which is there; remove it, or add --resume to "
                    "answer what it lacks."
                )
            end = self._read() if resumes and path.exists() else 0
            self._file: BinaryIO = path.open("ab", buffering=0)
            self._file.truncate(end)
        except OSError as error:
            raise self._refused(error) from error

    def __enter__(self) -> BatchOutput:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, answer: dict[str, Any]) -> None:
        """Raises ConfigError where the disk takes no more; nothing of the line stays then."""
        line = msgspec.json.encode(answer) + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) < len(line):
                raise OSError("No space left on device")
        except OSError as error:
            self._file.truncate(size)
            raise self._refused(error) from error
        self._count(answer)

    def _count(self, answer: Any) -> None:
        response = answer["response"]
        self.num_failed += response is None or response["status_code"] != 200
        self.answered.add(answer["error"]["message"] if response is None else answer["custom_id"])

    def _read(self) -> int:
        """Where its last whole line ends."""
        end = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    self._count(msgspec.json.decode(line))
                except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError) as error:
                    raise ConfigError(
                        f"--output-file is {self._path}, whose line {number} is no answer of a "
                        "batch; --resume goes on with a file of answers only."
                    ) from error
                end += len(line)
        return end

    def _refused(self, error: OSError) -> ConfigError:
        reason = error.strerror or error
        return ConfigError(
            f"--output-file is {self._path}, which cannot be written: {reason}. Free space or "
            "choose another; with --resume the same command goes on."
        )

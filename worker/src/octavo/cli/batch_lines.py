"""The lines of an OpenAI batch file: what each asks for, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import ConfigError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
"""That a line may name; the routes of a server."""


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One line that is not empty."""

    custom_id: str | None
    """None where it has none, or is no JSON object."""
    url: str = ""
    body: bytes = b""
    """JSON."""
    fault: str | None = None
    """Why it cannot be asked at all."""


def read_batch_lines(path: Path) -> Iterator[BatchLine]:
    """Raises ConfigError for a file that cannot be read."""
    first_uses: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                text = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
                if text:
                    yield _checked(text, number, first_uses)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--input-file is {path}, which cannot be read: {reason}.") from error


def _checked(text: bytes, number: int, first_uses: dict[str, int]) -> BatchLine:
    try:
        line = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return BatchLine(None, fault=f"Line {number} is not valid JSON ({error}).")
    custom_id = line.get("custom_id") if isinstance(line, dict) else None
    if not isinstance(custom_id, str) or not custom_id:
        return BatchLine(
            None, fault=f"Line {number} has no custom_id; give each line a text of its own."
        )
    first = first_uses.setdefault(custom_id, number)
    if first != number:
        fault = f"Line {number} has the custom_id of line {first}; give each line one of its own."
        return BatchLine(custom_id, fault=fault)
    fault_of_body = _fault(line)
    if fault_of_body is not None:
        return BatchLine(custom_id, fault=f"Line {number}: {fault_of_body}")
    return BatchLine(custom_id, line["url"], msgspec.json.encode(line["body"]))


def _fault(line: dict[str, Any]) -> str | None:
    method, url, body = line.get("method", "POST"), line.get("url"), line.get("body")
    if method != "POST":
        return f"method is {method!r:.80}; it must be 'POST'."
    if url not in URLS:
        return f"url is {url!r:.80}; it must be one of {', '.join(URLS)}."
    if not isinstance(body, dict):
        return f"body is {body!r:.80}; it must be an object, the body of a request to {url}."
    if body.get("stream"):
        return "body asks for a stream, which a file cannot take; leave stream out."
    return None

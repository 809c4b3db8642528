"""A client of one request that can be slow, rude or impatient: HTTP/1.1 on a bare connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """What came back, as far as it was read."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    is_whole: bool = False
    chunks: list[dict[str, Any]] = field(default_factory=list)
    """Of a stream of server-sent events: its documents."""

    @property
    def error(self) -> dict[str, Any]:
        """The error of an answer, or of the end of a stream."""
        document = self.chunks[-1] if self.chunks else json.loads(self.body)
        error: dict[str, Any] = document.get("error", {})
        return error

    @property
    def choice(self) -> dict[str, Any]:
        """The only choice: of a stream its chunks put together."""
        if not self.chunks:
            choice: dict[str, Any] = json.loads(self.body)["choices"][0]
            return choice
        parts = [chunk["choices"][0] for chunk in self.chunks if chunk.get("choices")]
        last = parts[-1] if parts else {}
        return {**last, "text": "".join(part["text"] for part in parts)}


async def post(
    address: tuple[str, int],
    path: str,
    body: bytes,
    headers: dict[str, str] | None = None,
    *,
    sent: Callable[[], None] = lambda: None,
    pause: Callable[[Answer], Awaitable[bool]] | None = None,
) -> Answer:
    """Send, and read to the end, or until ``pause``, awaited after each read, says False.

    Once ``sent`` was called the server will see the whole request, whatever happens here.
    """
    reader, writer = await asyncio.open_connection(*address, limit=1 << 16)
    try:
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        sent()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        answer = Answer(int(head[0].split()[1]), fields)
        await _read_body(reader, answer, pause)
        return answer
    finally:
        writer.close()


async def _read_body(
    reader: asyncio.StreamReader,
    answer: Answer,
    pause: Callable[[Answer], Awaitable[bool]] | None,
) -> None:
    if "content-length" in answer.headers:
        answer.body = await reader.readexactly(int(answer.headers["content-length"]))
        answer.is_whole = True
        return
    while size := int(await reader.readline(), 16):
        answer.body += (await reader.readexactly(size + 2))[:-2]
        _take_events(answer)
        if pause is not None and not await pause(answer):
            return
    answer.is_whole = True


def _take_events(answer: Answer) -> None:
    *events, answer.body = answer.body.split(b"\n\n")
    for event in events:
        if event != b"data: [DONE]":
            answer.chunks.append(json.loads(event.removeprefix(b"data: ")))

"""What one streamed chunk costs the server: encoding alone, and with everything around it.

    python benchmarks/streaming.py [--chunks N]

Prints one JSON line a figure, in microseconds a chunk. ``encode_*`` is the event turned into
bytes; ``stream_asgi`` is the whole way from the engine's event to ASGI's send, accounts and
metrics included; ``stream_asgi_requests`` is what a request of one chunk costs in all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from octavo.config import ServerConfig
from octavo.engine.adapter_table import AdapterTable
from octavo.engine.interface import EngineState, LoadProgress
from octavo.engine.model_info import ModelInfo
from octavo.outputs import EngineStats, GenerationEvent, RequestState, TokenLogprobs
from octavo.server.app import create_app
from octavo.server.chunks import ChatChunks
from octavo.server.logprobs import LogprobWriter
from octavo.server.usage import Usage

HEAD = {
    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "smollm2",
    "system_fingerprint": "octavo",
}


class EventSource:
    """An engine that has its events ready: what is measured is the server."""

    state = EngineState.READY
    tokenizer = None
    has_chat_template = True
    chat_template_source = ""
    adapters = AdapterTable(lambda message: None, is_enabled=False, wait_s=1.0)
    info = ModelInfo(
        name="m",
        max_model_len=1 << 20,
        vocab_size=50_000,
        has_tokenizer=False,
        eos_token_ids=[0],
        created=0,
    )

    def __init__(self, num_chunks: int) -> None:
        self.num_chunks = num_chunks

    async def start(self) -> None:
        """Nothing to load."""

    async def wait_ready(self) -> None:
        """Ready from the start."""

    def progress(self) -> LoadProgress:
        """Nothing to tell."""
        return LoadProgress()

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[GenerationEvent, None]:
        """One event after the other, without a pause."""
        for _ in range(self.num_chunks - 1):
            yield GenerationEvent(0, " token", [17], num_prompt_tokens=5)
        yield GenerationEvent(0, " end", [18], finish_reason="length", num_prompt_tokens=5)

    def abort(self, request_id: str) -> bool:
        """Nothing is open."""
        return False

    async def inspect(self) -> Mapping[str, RequestState]:
        """Nothing is open."""
        return {}

    async def encode(self, *args: Any, **kwargs: Any) -> list[int]:
        """Any text will do."""
        return [1, 2, 3, 4, 5]

    def template_reads(self, variable: str) -> bool:
        """It reads nothing."""
        return False

    async def render_chat(self, *args: Any, **kwargs: Any) -> list[int]:
        """Any prompt will do."""
        return [1, 2, 3, 4, 5]

    def stats(self) -> EngineStats:
        """Nothing counted."""
        return EngineStats()

    async def drain(self, timeout_s: float) -> None:
        """Nothing open."""

    async def close(self) -> None:
        """Nothing held."""


def encode_us(num_chunks: int, chunks: ChatChunks, event: GenerationEvent) -> float:
    """Microseconds to encode one chunk."""
    write: Callable[[GenerationEvent], bytes] = chunks.write
    started = time.perf_counter()
    for _ in range(num_chunks):
        write(event)
    return (time.perf_counter() - started) / num_chunks * 1e6


async def stream_us(num_chunks: int, num_requests: int) -> float:
    """Microseconds a chunk for whole requests through the application."""
    app = create_app(EventSource(num_chunks), ServerConfig())
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
    started = time.perf_counter()
    for _ in range(num_requests):
        num_sent = await _request(app, body)
        assert num_sent > num_chunks, f"{num_sent} events of {num_chunks} chunks"
    return (time.perf_counter() - started) / (num_chunks * num_requests) * 1e6


async def _request(app: Any, body: bytes) -> int:
    """Returns how many events were sent."""
    num_events = 0
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(message: dict[str, Any]) -> None:
        nonlocal num_events
        assert message.get("status", 200) == 200, message
        num_events += message.get("body", b"").count(b"data: ")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
    }
    await app(scope, receive, send)
    return num_events


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=100_000)
    num_chunks = parser.parse_args().chunks
    plain = ChatChunks(HEAD, Usage(), None, num_choices=1)
    detailed = ChatChunks(HEAD, Usage(), LogprobWriter(None), num_choices=1)
    text = GenerationEvent(0, " token", [17])
    top = [17, 18, 19, 20, 21]
    scored = GenerationEvent(
        0, " token", [17], [TokenLogprobs(17, -0.5, 1, top, [-0.5, -1.5, -2.5, -3.5, -4.5])]
    )
    last = GenerationEvent(0, " token", [17], finish_reason="stop")
    figures = {
        "encode_text": encode_us(num_chunks, plain, text),
        "encode_last": encode_us(num_chunks, plain, last),
        "encode_top5_logprobs": encode_us(num_chunks, detailed, scored),
        "stream_asgi": asyncio.run(stream_us(num_chunks, 1)),
        "stream_asgi_requests": asyncio.run(stream_us(1, max(1, num_chunks // 100))),
    }
    for name, value in figures.items():
        print(json.dumps({"figure": name, "value": round(value, 3), "unit": "us/chunk"}))


if __name__ == "__main__":
    main()

"""What is asked stays out of the log, whatever goes wrong; and a test of the test."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from octavo.config import ServerConfig
from octavo.logs import LOG_FORMATS, configure_logging
from octavo.server.app import create_app
from polling import until
from running_server import running_server

MARKER = "marker-7f3a"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(params=LOG_FORMATS)
def log(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """Everything this process logs, at its most talkative, as the server would write it."""
    root, ours = logging.getLogger(), logging.getLogger("octavo")
    before = root.handlers[:], root.level, ours.level
    written = io.StringIO()
    configure_logging(request.param, "debug", written, withholds_messages=True)
    root.setLevel(logging.DEBUG)
    try:
        yield written
    finally:
        root.handlers[:], level, ours_level = before
        root.setLevel(level)
        ours.setLevel(ours_level)


class TalkativeEngine(FakeEngine):
    """Its errors quote what they were given, as errors do."""

    async def render_chat(self, messages: Any, *args: Any, **kwargs: Any) -> str:
        try:
            raise KeyError(messages[-1]["content"])
        except KeyError as error:
            raise ValueError(f"cannot render {messages}") from error

    def generate(self, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        if MARKER in str(prompts) and "explode" in str(prompts):
            raise ZeroDivisionError(f"cannot generate for {prompts}")
        return super().generate(prompts, *args, **kwargs)


BODIES: list[tuple[str, dict[str, Any]]] = [
    (TEXT, {"prompt": MARKER}),
    (TEXT, {"prompt": MARKER, "stream": True}),
    (TEXT, {"prompt": f"{MARKER} explode"}),
    (TEXT, {"prompt": [MARKER, MARKER], "n": 2}),
    (TEXT, {"prompt": MARKER, "n": 10**6}),
    (TEXT, {"prompt": {MARKER: MARKER}}),
    (TEXT, {MARKER: MARKER, "prompt": "x"}),
    (TEXT, {"prompt": MARKER * 200}),
    (TEXT, {"prompt": "x", "stop": [MARKER], "user": MARKER, "model": MARKER}),
    (TEXT, {"prompt": f"\ud800{MARKER}"}),
    (CHAT, {"messages": [{"role": "user", "content": MARKER}]}),
    (CHAT, {"messages": [{"role": MARKER, "content": MARKER}]}),
    (CHAT, {"messages": MARKER}),
]


async def ask_everything(client: httpx.AsyncClient) -> list[int]:
    statuses = []
    for path, body in BODIES:
        if str(body.get("prompt"))[:1] == "\ud800":  # httpx cannot write it
            content = b'{"prompt": "\\ud800' + MARKER.encode() + b'"}'
            headers = {"Content-Type": "application/json"}
            response = await client.post(path, content=content, headers=headers)
        else:
            response = await client.post(path, json=body)
        statuses.append(response.status_code)
    response = await client.post(TEXT, content=f'{{"prompt": "{MARKER}'.encode())
    return [*statuses, response.status_code]


async def test_no_log_line_holds_what_was_asked(log: io.StringIO) -> None:
    engine = TalkativeEngine()
    config = ServerConfig(log_requests=True)
    async with (
        running_server(engine, config) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        await server.listener.is_ready.wait()
        statuses = await ask_everything(client)
        assert {200, 400, 404, 500} <= set(statuses)
        engine.fail_midway = f"it broke at {MARKER}"
        await client.post(TEXT, json={"prompt": MARKER, "max_tokens": 9})
        await until(lambda: not engine.open_ids)
    text = log.getvalue()
    assert "ZeroDivisionError" in text  # what went wrong is told, and where
    assert "KeyError" in text
    assert "in generate" in text
    assert "/v1/completions" in text
    assert MARKER not in text


async def test_prompts_are_logged_when_that_is_asked_for(log: io.StringIO) -> None:
    app = create_app(FakeEngine(), ServerConfig(log_prompts=True))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as client:
        await client.post(TEXT, json={"prompt": MARKER}, headers={"X-Request-Id": "trace-1"})
    (line,) = [line for line in log.getvalue().splitlines() if MARKER in line]
    assert "trace-1" in line

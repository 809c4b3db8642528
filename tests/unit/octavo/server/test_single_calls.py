"""At most one call: the answer ends with the call, each choice by itself; the test speaks as the
engine's process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from octavo.config import ServerConfig
from octavo.engine.messages import Abort
from octavo.outputs import RequestUpdate
from octavo.server.app import create_app
from octavo.tools.formats import CallFormat
from puppet_engine import INFO, PuppetEngine, puppet_engine

LONG = msgspec.structs.replace(INFO, max_model_len=4096)
CALLS = {
    CallFormat.HERMES: '<tool_call>{"name": "f", "arguments": {"a": 1}}',
    CallFormat.LLAMA3_JSON: '{"name": "f", "parameters": {"a": 1}}',
    CallFormat.MISTRAL: '[TOOL_CALLS]f{"a": 1}',
    CallFormat.PYTHONIC: "[f(a=1)",
}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}
BODY: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [{"type": "function", "function": FUNCTION}],
    "parallel_tool_calls": False,
    "max_tokens": 99,
}


@pytest.fixture
async def engine(byte_tokenizer: Path) -> AsyncIterator[PuppetEngine]:
    async with puppet_engine(byte_tokenizer, LONG) as engine:
        yield engine


def ask(
    engine: PuppetEngine,
    path: str = "chat/completions",
    body: dict[str, Any] = BODY,
    **fields: Any,
) -> asyncio.Task[httpx.Response]:
    """A request under way."""
    kind = fields.pop("kind", CallFormat.HERMES)
    app = create_app(engine, ServerConfig(tool_call_parser=kind.value))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://octavo")
    return asyncio.create_task(client.post(f"/v1/{path}", json=body | fields))


def said(choice_id: str, text: str, finish: str | None = None) -> RequestUpdate:
    return RequestUpdate(choice_id, list(text.encode()), finish_reason=finish)


def choices_of(answer: httpx.Response) -> list[tuple[str, list[list[Any]], str]]:
    """Content, calls and finish reason of each choice, of whole and of streamed answers."""
    assert answer.status_code == 200, answer.text
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return [
            (
                choice["message"]["content"] or "",
                [
                    list(call["function"].values())
                    for call in choice["message"].get("tool_calls", ())
                ],
                choice["finish_reason"],
            )
            for choice in answer.json()["choices"]
        ]
    found: dict[int, list[Any]] = {}
    for line in answer.text.split("\n\n")[:-2]:
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        whole = found.setdefault(choice["index"], ["", [], None])
        whole[0] += choice["delta"].get("content") or ""
        for call in choice["delta"].get("tool_calls", ()):
            if call.get("id"):
                whole[1].append([call["function"]["name"], ""])
            whole[1][call["index"]][1] += call["function"]["arguments"]
        whole[2] = choice["finish_reason"] or whole[2]
    return [(found[index][0], found[index][1], found[index][2]) for index in sorted(found)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", CallFormat)
async def test_each_choice_ends_with_its_own_call(
    engine: PuppetEngine, kind: CallFormat, stream: bool
) -> None:
    answer = ask(engine, n=2, stream=stream, kind=kind, bad_words=["never"])
    first, second = [spec.id for spec in (await engine.hear()).requests]
    whole = CALLS[kind]
    engine.report(said(first, whole[:-2]), said(second, "No "))
    # Whatever the same step brought beside the call's end is nobody's.
    engine.report(said(first, whole[-2:] + whole), said(second, "call."))
    assert await engine.hear() == Abort([first])
    engine.report(said(first, whole), said(second, ".", "length"))
    assert choices_of(await answer) == [
        ("", [["f", '{"a": 1}']], "tool_calls"),
        ("No call..", [], "length"),
    ]
    await engine.hear_nothing()


async def test_a_call_that_is_whole_with_the_last_token_allowed_is_not_cut(
    engine: PuppetEngine,
) -> None:
    answer = ask(engine)
    (spec,) = (await engine.hear()).requests
    engine.report(said(spec.id, "So: " + CALLS[CallFormat.HERMES], "length"))
    assert choices_of(await answer) == [("So:", [["f", '{"a": 1}']], "tool_calls")]


async def test_a_call_that_is_cut_says_so(engine: PuppetEngine) -> None:
    answer = ask(engine)
    (spec,) = (await engine.hear()).requests
    engine.report(said(spec.id, CALLS[CallFormat.HERMES][:-1], "length"))
    assert choices_of(await answer) == [("", [["f", '{"a": 1}']], "length")]


async def test_a_response_ends_with_its_call(engine: PuppetEngine) -> None:
    tools = [{"type": "function", **FUNCTION}]
    body = {"model": "tiny", "input": "hi", "tools": tools, "parallel_tool_calls": False}
    answer = ask(engine, "responses", body)
    (spec,) = (await engine.hear()).requests
    engine.report(said(spec.id, CALLS[CallFormat.HERMES] * 2))
    assert await engine.hear() == Abort([spec.id])
    found = (await answer).json()
    assert found["status"] == "completed", found
    assert [item["arguments"] for item in found["output"]] == ['{"a": 1}']

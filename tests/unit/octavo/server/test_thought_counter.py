"""Usage tells how many of the answer's tokens were thoughts; the test speaks as the engine."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_engine import ByteTokenizer
from octavo.config import ServerConfig
from octavo.grammar import ReasoningSpan
from octavo.outputs import RequestUpdate
from octavo.server.app import create_app
from octavo.server.thought_counter import ThoughtCounter
from puppet_engine import PuppetEngine, puppet_engine

TEXTS = [
    ("<think>Hm, so.</think>Yes.", False, 7),
    (" \n<think>Hm</think></think>", False, 2),
    ("Hm, so.</think>Yes.", True, 7),
    ("Hm </thi", True, 8),
    ("<think></think>Yes.", False, 0),
    ("Yes. <think>Hm</think>", False, 0),
    ("<thin", False, 0),
]


PIECES = {300: b"<think>", 301: b"</think>", 302: b"<eos>", 303: b".</", 304: b"think>Yes"}


class Vocabulary(ByteTokenizer):
    """Bytes, and some tokens of more."""

    special_ids = frozenset({300, 301, 302})

    def token_bytes(self, token_id: int) -> bytes:
        return PIECES.get(token_id) or bytes([token_id])


@pytest.mark.parametrize(("text", "is_open", "expected"), TEXTS)
@given(cuts=st.lists(st.integers(0, 30)))
def test_thoughts_are_counted_without_their_marks_however_the_tokens_come(
    text: str, is_open: bool, expected: int, cuts: list[int]
) -> None:
    counter = ThoughtCounter(ByteTokenizer(), ReasoningSpan("<think>", "</think>", is_open))
    ids, places = list(text.encode()), [0, *sorted(cuts), len(text)]
    found = [counter.feed(ids[start:end]) for start, end in itertools.pairwise(places)]
    assert sum(found) == counter.num_tokens == expected


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([300, 72, 109, 301, 89, 302], 2),
        ([302, 300, 72, 302], 2),  # what ends an answer within thoughts is nothing else
        ([300, 72, 303, 304, 89], 2),  # a token that ends thoughts and begins the mark
        ([302, 89], 0),
    ],
)
def test_marks_may_be_tokens_or_parts_of_them(ids: list[int], expected: int) -> None:
    span = ReasoningSpan("<think>", "</think>", is_open=False)
    assert ThoughtCounter(Vocabulary(), span).feed(ids) == expected


@pytest.fixture
async def engine(byte_tokenizer: Path) -> AsyncIterator[PuppetEngine]:
    async with puppet_engine(byte_tokenizer) as engine:
        yield engine


async def usage_of(
    engine: PuppetEngine, path: str, parser: str = "think", **body: Any
) -> dict[str, Any]:
    """Of a request whose first choice thinks for three tokens and whose others think for one."""
    app = create_app(engine, ServerConfig(reasoning_parser=parser))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://octavo")
    answer = asyncio.create_task(client.post(f"/v1/{path}", json={"model": "tiny"} | body))
    first, *others = [spec.id for spec in (await engine.hear()).requests]
    engine.report(RequestUpdate(first, list(b"<think>Hm")))
    engine.report(RequestUpdate(first, list(b".</think>Yes"), finish_reason="stop"))
    for other in others:
        engine.report(RequestUpdate(other, list(b"<think>H</think>"), finish_reason="stop"))
    response = await answer
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return dict(response.json()["usage"])
    told = [json.loads(block.partition("data: ")[2]) for block in response.text.split("\n\n")[:-2]]
    return dict(told[-1]["usage"])


MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("include_reasoning", [True, False])
@pytest.mark.parametrize("more", [{}, {"stream": True, "stream_options": {"include_usage": True}}])
async def test_usage_of_a_chat_tells_the_thoughts_of_all_choices(
    engine: PuppetEngine, more: dict[str, Any], include_reasoning: bool
) -> None:
    body = {"messages": MESSAGES, "n": 2, "include_reasoning": include_reasoning} | more
    usage = await usage_of(engine, "chat/completions", **body)
    assert usage["completion_tokens"] == 37
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 4


async def test_usage_of_a_response_tells_its_thoughts(engine: PuppetEngine) -> None:
    usage = await usage_of(engine, "responses", input="hi")
    assert usage["output_tokens_details"] == {"reasoning_tokens": 3}


async def test_a_model_without_thoughts_has_none_to_count(engine: PuppetEngine) -> None:
    usage = await usage_of(engine, "chat/completions", "none", messages=MESSAGES)
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0

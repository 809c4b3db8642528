"""Where the tokens of an echoed prompt stand in the text; the test speaks as the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.config import ServerConfig
from octavo.outputs import RequestUpdate, TokenLogprobs
from octavo.server.app import create_app
from octavo.server.logprobs import TextOffsets
from puppet_engine import PuppetEngine, puppet_engine
from tiny_models import EOS_TOKEN_ID, SPECIAL_TOKENS

EOS = SPECIAL_TOKENS[1]
SIZE = len(EOS)


@pytest.fixture
async def engine(byte_tokenizer: Path) -> AsyncIterator[PuppetEngine]:
    async with puppet_engine(byte_tokenizer) as engine:
        yield engine


async def choice_of(engine: PuppetEngine, **body: Any) -> dict[str, Any]:
    """The choice that an echo of a prompt, and ``cd`` and the end after it, make."""
    app = create_app(engine, ServerConfig())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://octavo")
    body = {"model": "tiny", "echo": True, "logprobs": 0, "max_tokens": 9} | body
    answer = asyncio.create_task(client.post("/v1/completions", json=body))
    (spec,) = (await engine.hear()).requests
    said = [*b"cd", EOS_TOKEN_ID]
    scores = [TokenLogprobs(id_, -1.0, 1, [], []) for id_ in [*spec.prompt_token_ids[1:], *said]]
    cut = len(spec.prompt_token_ids) - 1
    engine.report(
        RequestUpdate(
            spec.id, said, scores[cut:], finish_reason="stop", prompt_logprobs=scores[:cut]
        )
    )
    response = await answer
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return dict(response.json()["choices"][0])
    whole: dict[str, Any] = {"text": "", "logprobs": {"text_offset": []}}
    for block in response.text.split("\n\n")[:-2]:
        (choice,) = json.loads(block.removeprefix("data: "))["choices"]
        whole["text"] += choice["text"]
        told = choice["logprobs"] or {"text_offset": []}
        whole["logprobs"]["text_offset"] += told["text_offset"]
    return whole


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    ("prompt", "text", "offsets"),
    [
        (f"a{EOS}b", f"a{EOS}bcd", [0, 1, 1 + SIZE, 2 + SIZE, 3 + SIZE, 4 + SIZE]),
        (f"{EOS}{EOS}", f"{EOS}{EOS}cd", [0, SIZE, 2 * SIZE, 2 * SIZE + 1, 2 * SIZE + 2]),
    ],
    ids=["between", "only"],
)
async def test_special_tokens_that_a_text_spells_have_their_place_in_it(
    engine: PuppetEngine, prompt: str, text: str, offsets: list[int], skip: bool, stream: bool
) -> None:
    choice = await choice_of(engine, prompt=prompt, skip_special_tokens=skip, stream=stream)
    assert choice["text"] in (text, text + EOS)
    assert choice["logprobs"]["text_offset"] == offsets


async def test_special_ids_of_a_prompt_take_place_where_they_are_shown(
    engine: PuppetEngine,
) -> None:
    ids = [97, EOS_TOKEN_ID, 98]
    choice = await choice_of(engine, prompt=ids)
    assert choice["text"] == "abcd"
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2, 3, 4]


@pytest.mark.parametrize("skip", [True, False])
async def test_a_special_token_put_before_a_text_takes_no_place_in_it(
    engine: PuppetEngine, skip: bool
) -> None:
    offsets = TextOffsets(engine.tokenizer, (), skip_special_tokens=skip, echoed="ab", num_echoed=3)
    shown = [offsets.next(id_) for id_ in (EOS_TOKEN_ID, 97, 98, EOS_TOKEN_ID, 99)]
    assert shown == [0, 0, 1, 2, 2 if skip else 2 + SIZE]

"""``POST /v1/embeddings``: forms of input and output, and what reaches the engine."""

from __future__ import annotations

from array import array
from base64 import b64decode
from typing import Any

import httpx
import pytest

from fake_engine import EOS, MAX_MODEL_LEN, FakeEngine, fake_embedding
from octavo.pooling_params import PoolingParams

PATH = "/v1/embeddings"


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post(PATH, json=body)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("hi", ["hi"]),
        (["hi", "you"], ["hi", "you"]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
    ids=["text", "texts", "ids", "lists-of-ids"],
)
async def test_every_form_of_input_gives_vectors_in_order(
    client: httpx.AsyncClient, engine: FakeEngine, given: Any, prompts: list[Any]
) -> None:
    answer = (await post(client, input=given)).json()
    assert sorted(seen[0] for seen in engine.seen) == sorted(prompts)
    assert all(seen[1].max_tokens == 0 for seen in engine.seen)
    ids = [list(p.encode()) if isinstance(p, str) else p for p in prompts]
    assert answer["object"] == "list"
    assert answer["model"] == "toy/bytes"
    assert answer["data"] == [
        {
            "object": "embedding",
            "index": index,
            "embedding": array("f", fake_embedding(one, PoolingParams())).tolist(),
        }
        for index, one in enumerate(ids)
    ]
    num_tokens = sum(map(len, ids))
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


async def test_base64_holds_the_same_numbers(client: httpx.AsyncClient) -> None:
    numbers = (await post(client, input="hey", encoding_format="float")).json()
    encoded = (await post(client, input="hey", encoding_format="base64")).json()
    text = encoded["data"][0]["embedding"]
    assert array("f", b64decode(text)).tolist() == numbers["data"][0]["embedding"]


@pytest.mark.parametrize(
    ("body", "params"),
    [
        ({}, PoolingParams("last")),
        ({"pooling": "mean"}, PoolingParams("mean")),
        ({"dimensions": 2}, PoolingParams("last", 2)),
        ({"dimensions": 4}, PoolingParams("last", 4)),
        ({"normalize": False}, PoolingParams("last", normalize=False)),
    ],
)
async def test_pooling_fields_reach_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, body: dict[str, Any], params: PoolingParams
) -> None:
    answer = await post(client, input="x", **body)
    assert answer.status_code == 200
    assert engine.seen[0][2].pooling == params
    assert len(answer.json()["data"][0]["embedding"]) == (params.dimensions or 4)


async def test_prompt_fields_shape_the_prompt(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await post(client, input="abcd", truncate_prompt_tokens=3)
    await post(client, input="abcd", truncate_prompt_tokens=3, truncation_side="right")
    await post(client, input="abcd", add_special_tokens=False, priority=2, cache_salt="t")
    await post(client, input="x" * 1000, truncate_prompt_tokens=-1)
    prompts = [seen[0] for seen in engine.seen]
    assert prompts[0] == [EOS, *b"cd"], "the special token counts, and is kept"
    assert prompts[1] == [EOS, *b"ab"]
    assert prompts[2] == list(b"abcd")
    assert len(prompts[3]) == MAX_MODEL_LEN
    assert engine.seen[2][2].priority == 2
    assert engine.seen[2][2].cache_salt == "t"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "input", "missing"),
        ({"input": []}, "input", "empty"),
        ({"input": [[]]}, "input", "not empty"),
        ({"input": ["a", 5]}, "input", "item 1"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"input": [257]}, "input", "256"),
        ({"input": "x", "dimensions": 3}, "dimensions", "one of 2, 4"),
        ({"input": "x", "dimensions": 0}, "dimensions", "at least 1"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format", "base64"),
        ({"input": "x", "pooling": "cls"}, "pooling", "mean"),
        ({"input": "x", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
        ({"input": "x", "truncation_side": "left"}, None, "truncate_prompt_tokens"),
        ({"input": "x", "embed_dtype": "float16"}, "embed_dtype", "float32"),
        ({"input": "x", "messages": [{}]}, "messages", "/tokenize"),
        ({"input": "x", "stream": True}, "stream", "Unknown field"),
        ({"input": "x", "model": "gpt-4"}, "model", "toy/bytes"),
    ],
)
async def test_bad_bodies_are_refused_by_field(
    client: httpx.AsyncClient, body: dict[str, Any], param: str | None, words: str
) -> None:
    response = await post(client, **body)
    error = response.json()["error"]
    assert response.status_code == (404 if param == "model" else 400)
    assert error["param"] == param
    assert words in error["message"]


async def test_an_input_that_is_not_read_to_its_end_is_no_vector(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.finish_with = "abort"
    response = await post(client, input="x")
    assert response.status_code == 503

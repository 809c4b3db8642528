"""The official client, unchanged, against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from fake_engine import FakeEngine, expected_text, render
from octavo.config import ServerConfig
from running_server import RunningServer, running_server

KEY = "sk-test"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
RENDERED = render([{"role": "user", "content": "Hello"}])


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    config = ServerConfig(api_keys=("other", KEY), served_model_names=("toy", "toy-alias"))
    async with running_server(FakeEngine(max_open=3), config) as server:
        await server.listener.is_ready.wait()
        yield server


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=20
    ) as client:
        yield client


async def test_models(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["toy", "toy-alias"]
    assert (await client.models.retrieve("toy-alias")).id == "toy-alias"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")


async def test_chat(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="toy-alias",
        messages=MESSAGES,
        max_completion_tokens=4,
        n=2,
        logprobs=True,
        top_logprobs=1,
        extra_body={"top_k": 5, "min_p": 0.1},
    )
    assert answer.model == "toy-alias"
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [expected_text(RENDERED, choice, 4) for choice in (0, 1)]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.token for token in logprobs.content] == list(texts[0] or "")


async def test_streamed_chat(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="toy",
        messages=MESSAGES,
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, reasons, usages = "", [], []
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons.append(choice.finish_reason)
        usages.append(chunk.usage)
    assert text == expected_text(RENDERED, 0, 5)
    assert reasons[-1] == "length"
    assert usages[-1] is not None
    assert usages[-1].total_tokens == len(RENDERED) + 5
    assert usages[:-1] == [None] * (len(usages) - 1)


async def test_clients_own_stream_helper(client: AsyncOpenAI) -> None:
    text = expected_text(RENDERED, 0, 5)
    async with client.chat.completions.stream(
        model="toy",
        messages=MESSAGES,
        stop=text[-1],
    ) as stream:
        async for _ in stream:
            pass
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.content == text
    assert answer.choices[0].finish_reason == "stop"


async def test_completions(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="toy", prompt=["ab", "cd"], max_tokens=3, logprobs=1, echo=False
    )
    texts = [choice.text for choice in answer.choices]
    assert texts == [expected_text("ab", 0, 3), expected_text("cd", 0, 3)]
    stream = await client.completions.create(model="toy", prompt="ab", max_tokens=3, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == texts[0]


async def test_errors_become_the_clients_exceptions(
    client: AsyncOpenAI, server: RunningServer
) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await client.completions.create(model="toy", prompt="a", temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.completions.create(model="gpt-4", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as locked:
        await client.with_options(api_key="wrong").models.list()
    assert locked.value.code == "invalid_api_key"


async def test_full_queue_is_a_rate_limit_with_a_time(
    client: AsyncOpenAI, server: RunningServer
) -> None:
    server.engine.gate.clear()
    prompts = ["a", "b", "c", "d"]
    with pytest.raises(openai.RateLimitError) as full:
        await client.completions.create(model="toy", prompt=prompts, max_tokens=1)
    assert full.value.response.headers["retry-after"] == "3"
    assert server.engine.aborted_ids == [], "no part of it was begun"


async def test_failure_in_a_stream_is_raised_by_the_client(
    client: AsyncOpenAI, server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.engine.fail_midway = "secret details"
    stream = await client.completions.create(model="toy", prompt="ab", max_tokens=9, stream=True)
    texts = []

    async def read() -> None:
        async for chunk in stream:
            texts.append(chunk.choices[0].text)

    with pytest.raises(openai.APIError) as failed:
        await read()
    assert "".join(texts) == expected_text("ab", 0, 2)
    assert "secret" not in str(failed.value)
    assert "secret details" in caplog.text

"""Clients of other projects, unchanged, against a real server with the demo model.

Each asks for a short chat, whole and streamed, and for what it alone does in its own way. Of two
that are large to install the requests are sent as they send them.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from operator import mul
from pathlib import Path
from typing import Any

import httpx
import openai
import pydantic
import pytest

from served_model import ServedModel, served_model

pytestmark = [
    pytest.mark.demo_model,
    pytest.mark.timeout(900),
    # Warnings of other people's code, on import and in use, are theirs.
    pytest.mark.filterwarnings("ignore"),
]

NAME = "smollm2"
NODE_CLIENT = "openai@7.57.0"
QUESTION = "What is the capital of France?"
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    log = tmp_path_factory.mktemp("clients") / "log"
    flags = ("--max-model-len", "1024", "--served-model-name", NAME)
    with served_model("demo://smollm2-135m-instruct", log, *flags) as served:
        yield served
        assert not [event for event in served.events() if event["level"] == "error"]


@pytest.fixture(scope="module")
def url(served: ServedModel) -> str:
    return f"{served.url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", timeout=300, max_retries=0) as client:
        yield client


def test_openai_for_python_chats(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    asked: dict[str, Any] = {
        "model": NAME,
        "messages": ASKED,
        "max_completion_tokens": 16,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**asked)
    assert "Paris" in (whole.choices[0].message.content or "")
    assert whole.choices[0].logprobs is not None
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    with client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content


def test_openai_for_python_streams_responses(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": NAME,
        "input": QUESTION,
        "instructions": "Answer in one sentence.",
        "max_output_tokens": 24,
        "temperature": 0,
    }
    whole = client.responses.create(**asked)
    assert "Paris" in whole.output_text
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == f"response.{whole.status}"
    assert final.output_text == whole.output_text
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.output_tokens == whole.usage.output_tokens
    # What was answered is sent back as it came.
    items: list[Any] = [*ASKED, *whole.output, {"role": "user", "content": "And of Italy?"}]
    assert client.responses.create(model=NAME, input=items, max_output_tokens=4).output_text


def test_openai_for_python_calls_tools_in_responses(client: openai.OpenAI) -> None:
    place = {"type": "string", "maxLength": 20}
    parameters = {
        "type": "object",
        "properties": {"city": place},
        "required": ["city"],
        "additionalProperties": False,
    }
    tools: list[Any] = [
        {"type": "function", "name": "get_weather", "parameters": parameters, "strict": True}
    ]
    asked: dict[str, Any] = {
        "model": NAME,
        "input": "What is the weather in Paris?",
        "tools": tools,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_output_tokens": 100,
        "temperature": 0,
    }
    whole = client.responses.create(**asked)
    (call,) = whole.output
    assert (whole.status, call.type, call.name) == ("completed", "function_call", "get_weather")
    assert set(json.loads(call.arguments)) == {"city"}
    with client.responses.stream(**asked) as stream:
        deltas = [
            event.delta
            for event in stream
            if event.type == "response.function_call_arguments.delta"
        ]
        final = stream.get_final_response()
    assert "".join(deltas) == call.arguments
    assert final.output[0].arguments == call.arguments  # type: ignore[union-attr]
    items: list[Any] = [
        {"role": "user", "content": asked["input"]},
        *whole.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 21 degrees"},
    ]
    answer = client.responses.create(
        model=NAME, input=items, tools=tools, tool_choice="none", max_output_tokens=24
    )
    assert answer.output_text


def test_openai_for_python_embeds_and_scores(client: openai.OpenAI) -> None:
    texts = ["A cat sat on the mat.", "A kitten sat on a rug.", "Bonds fell as rates rose."]
    # The client asks for base64 and makes numbers of it.
    data = client.embeddings.create(model=NAME, input=texts, extra_body={"pooling": "mean"}).data
    vectors = [one.embedding for one in data]
    assert {len(vector) for vector in vectors} == {576}
    assert all(math.isclose(sum(x * x for x in one), 1.0, rel_tol=1e-4) for one in vectors)
    cat, kitten, bonds = vectors
    assert sum(map(mul, cat, kitten)) > sum(map(mul, cat, bonds))
    scored = client.completions.create(
        model=NAME, prompt="Paris is the capital of France", max_tokens=0, echo=True, logprobs=1
    )
    logprobs = scored.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert "".join(logprobs.tokens) == scored.choices[0].text == "Paris is the capital of France"
    assert sum(logprobs.token_logprobs[1:]) < 0


def test_what_lm_evaluation_harness_asks(served: ServedModel) -> None:
    """Its ``local-completions``, which has no tokenizer: it takes ours, and sends token ids."""
    with httpx.Client(base_url=served.url, timeout=300) as http:
        assert http.get("/tokenizer_info").json()["eos_token"] == "<|im_end|>"

        def token_ids(text: str) -> list[int]:
            body = {"prompt": text, "add_special_tokens": False}
            ids: list[int] = http.post("/tokenize", json=body).json()["tokens"]
            return ids

        context = token_ids("The capital of France is")
        prompts = [context + token_ids(choice) for choice in (" Paris", " Rome", " blue")]
        asked = {"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": 1, "seed": 1234}
        answer = http.post("/v1/completions", json=asked | {"model": NAME, "temperature": 0}).json()
    scored = [choice["logprobs"] for choice in answer["choices"]]
    sums = [sum(one["token_logprobs"][len(context) : -1]) for one in scored]
    assert sums == sorted(sums, reverse=True)
    is_likeliest = [
        one["token_logprobs"][-2] == max(one["top_logprobs"][-2].values()) for one in scored
    ]
    assert is_likeliest == [True, False, False]


def test_what_codex_asks(client: openai.OpenAI) -> None:
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    tool = {"type": "function", "name": "get_goal", "strict": False, "parameters": parameters}
    items: list[Any] = [
        {"type": "message", "id": f"msg_{role}", "role": role, "content": [part]}
        for role, part in (
            ("developer", {"type": "input_text", "text": "Be brief."}),
            ("user", {"type": "input_text", "text": QUESTION}),
        )
    ]
    stream = client.responses.create(
        model=NAME,
        input=items,
        tools=[tool],  # type: ignore[list-item]
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"summary": "auto"},
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="thread",
        extra_body={"client_metadata": {"session_id": "x", "x-codex-turn-metadata": "{}"}},
    )
    assert [event.type for event in stream][-1] in ("response.completed", "response.incomplete")


NODE_SCRIPT = """
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.URL, apiKey: "none", maxRetries: 0 });
const asked = {
  model: "smollm2", messages: JSON.parse(process.env.MESSAGES),
  max_completion_tokens: 16, temperature: 0,
};
const whole = await client.chat.completions.create(asked);
let streamed = "", usage = null;
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...asked, ...options })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const events = [];
const input = { model: "smollm2", input: "Hi", max_output_tokens: 4, stream: true };
for await (const event of await client.responses.create(input)) events.push(event.type);
const embedded = await client.embeddings.create({ model: "smollm2", input: "cat" });
let refused = null;
try {
  await client.chat.completions.create({ ...asked, temperature: -1 });
} catch (error) {
  refused = [error.constructor.name, error.status, error.param];
}
const models = [];
for await (const model of client.models.list()) models.push(model.id);
console.log(JSON.stringify({
  whole: whole.choices[0].message.content, streamed, usage, events, refused, models,
  size: embedded.data[0].embedding.length,
}));
"""


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed here")
def test_openai_for_node(url: str, tmp_path: Path) -> None:
    install = ["npm", "install", "--prefix", str(tmp_path), "--no-audit", "--no-fund", NODE_CLIENT]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    script = tmp_path / "client.mjs"
    script.write_text(NODE_SCRIPT)
    done = subprocess.run(
        ["node", str(script)],
        env=os.environ | {"URL": url, "MESSAGES": json.dumps(ASKED)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "Paris" in answer["whole"]
    assert answer["streamed"] == answer["whole"]
    assert answer["usage"]["completion_tokens"] == 16 or answer["whole"].endswith(".")
    assert answer["events"][0] == "response.created"
    assert answer["events"][-1] in ("response.completed", "response.incomplete")
    assert answer["refused"] == ["BadRequestError", 400, "temperature"]
    assert answer["models"] == [NAME]
    assert answer["size"] == 576


def test_langchain(url: str) -> None:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    options: dict[str, Any] = {"model": NAME, "base_url": url, "api_key": "none"}
    model = ChatOpenAI(**options, temperature=0, max_tokens=16)
    answer = model.invoke(QUESTION)
    assert "Paris" in answer.content
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] in ("length", "stop")
    assert "".join(str(chunk.content) for chunk in model.stream(QUESTION)) == answer.content
    assert [one.content for one in model.batch([QUESTION, QUESTION])] == [answer.content] * 2
    by_responses = ChatOpenAI(**options, temperature=0, max_tokens=16, use_responses_api=True)
    assert by_responses.invoke(QUESTION).text == answer.content
    embeddings = OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    assert len(embeddings.embed_query("cat")) == 576


@pytest.fixture
def event_loop_of_this_thread() -> Iterator[None]:
    """For a library that makes one where there is none, and leaves it open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.usefixtures("event_loop_of_this_thread")
def test_litellm(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise it asks the internet for prices when it is imported.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    asked: dict[str, Any] = {
        "model": f"openai/{NAME}",
        "api_base": url,
        "api_key": "none",
        "messages": ASKED,
        "max_tokens": 16,
        "temperature": 0,
    }
    whole = litellm.completion(**asked)
    assert "Paris" in whole.choices[0].message.content
    chunks = list(litellm.completion(**asked, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**asked | {"temperature": -1})


class Person(pydantic.BaseModel):
    """What instructor is to find; bounded, as a small model does not know when to stop."""

    model_config = pydantic.ConfigDict(extra="forbid")
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=150)


def test_instructor(client: openai.OpenAI) -> None:
    import instructor

    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
        found = instructor.from_openai(client, mode=mode).chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": "Extract: Jason is 25 years old."}],
            response_model=Person,
            max_tokens=128,
            temperature=0,
            max_retries=0,
        )
        # (Its model is made from ours: equal in every field, of another class.)
        assert found.model_dump() == {"name": "Jason", "age": 25}

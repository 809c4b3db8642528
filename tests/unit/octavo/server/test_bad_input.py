"""Every way to send a bad request, and the sentence it is answered with."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fake_engine import MAX_MODEL_LEN, FakeEngine
from octavo.config import ServerConfig
from octavo.server.app import create_app
from octavo.server.body import validate
from octavo.server.protocol.chat import ChatCompletionRequest
from octavo.server.protocol.completion import CompletionRequest
from octavo.server.protocol.embeddings import EmbeddingRequest
from octavo.server.protocol.fields import RequestBody
from octavo.server.protocol.responses import ResponseRequest
from puppet_engine import puppet_engine
from tiny_models import save_byte_tokenizer

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**body: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": HELLO, "max_tokens": 1, **body}


def text(**body: Any) -> tuple[str, dict[str, Any]]:
    return TEXT, {"prompt": "hi", "max_tokens": 1, **body}


def part(**fields: Any) -> tuple[str, dict[str, Any]]:
    return chat(messages=[{"role": "user", "content": [fields]}])


# Request, the field at fault, and what the sentence must hold: value, limit, remedy.
BAD: list[tuple[tuple[str, dict[str, Any]], str | None, list[str]]] = [
    ((CHAT, {}), "messages", ["missing", "required"]),
    (chat(messages=[]), "messages", ["empty", "at least 1"]),
    (chat(messages="hi"), "messages", ["'hi'", "a list"]),
    (chat(messages=None), "messages", ["null", "a list"]),
    (chat(messages=["hi"]), "messages[0]", ["'hi'", "an object"]),
    (chat(messages=HELLO * 5000), "messages", ["5000", "4096"]),
    (chat(messages=[{"role": "user"}]), "messages[0]", ["content is missing"]),
    (chat(messages=[{"content": "x"}]), "messages[0].role", ["missing"]),
    (chat(messages=[{"role": "judge", "content": "x"}]), "messages[0].role", ["'judge'", "user"]),
    (chat(messages=[{"role": "tool", "content": "x"}]), "messages[0]", ["tool_call_id"]),
    (
        chat(messages=[{"role": "user", "content": 5}]),
        "messages[0].content",
        ["5", "a string or a list"],
    ),
    (chat(messages=[{"role": "user", "content": None}]), "messages[0]", ["content is missing"]),
    (chat(messages=[{"role": "user", "content": []}]), "messages[0].content", ["at least 1"]),
    (chat(messages=[HELLO[0] | {"x": 1}]), "messages[0].x", ["Unknown field"]),
    (
        chat(messages=[HELLO[0] | {"tool_calls": [{}]}]),
        "messages[0].tool_calls[0].id",
        ["missing"],
    ),
    (
        part(type="image_url", image_url={"url": "x"}),
        "messages[0].content",
        ["'image_url'", "text"],
    ),
    (part(type="input_audio"), "messages[0].content", ["'input_audio'", "text"]),
    (part(type="text", text=5), "messages[0].content[0].text", ["5", "a string"]),
    (part(type="text"), "messages[0].content[0].text", ["missing"]),
    (part(type="poem", text="x"), "messages[0].content[0].type", ["'poem'", "'text'"]),
    (chat(temperature=-0.5), "temperature", ["-0.5", "at least 0", "default"]),
    (chat(temperature="hot"), "temperature", ["'hot'", "a number"]),
    (chat(temperature=True), "temperature", ["true", "a number"]),
    (chat(temperature=1e9), "temperature", ["1000000000.0", "100"]),
    (chat(top_p=0), "top_p", ["0", "above 0"]),
    (chat(top_p=1.5), "top_p", ["1.5", "at most 1"]),
    (chat(top_k=-2), "top_k", ["-2", "at least -1"]),
    (chat(top_k=1.5), "top_k", ["1.5", "an integer"]),
    (chat(min_p=2), "min_p", ["2", "at most 1"]),
    (chat(n=0), "n", ["0", "at least 1"]),
    (chat(n=129), "n", ["129", "128"]),
    (chat(n="2"), "n", ["'2'", "an integer"]),
    (chat(max_tokens=0), "max_tokens", ["0", "at least 1"]),
    (chat(max_tokens=-1), "max_tokens", ["-1", "at least 1"]),
    (chat(max_tokens=2**31), "max_tokens", ["2147483648", "2147483647"]),
    (chat(max_completion_tokens=5), None, ["max_tokens is 1", "max_completion_tokens is 5"]),
    (chat(min_tokens=5), "min_tokens", ["5", "1"]),
    (chat(presence_penalty=3), "presence_penalty", ["3", "at most 2"]),
    (chat(frequency_penalty=-3), "frequency_penalty", ["-3", "at least -2"]),
    (chat(repetition_penalty=0), "repetition_penalty", ["0", "above 0"]),
    (chat(seed=2**63), "seed", [str(2**63), str(2**63 - 1)]),
    (chat(seed=10**40), "seed", [str(2**63 - 1)]),
    (chat(stop=""), "stop[0]", ["empty", "at least 1"]),
    (chat(stop=["a"] * 65), "stop", ["65", "64"]),
    (chat(stop=[1]), "stop[0]", ["1", "a string"]),
    (chat(stop="x" * 2000), "stop[0]", ["2000", "1024"]),
    (chat(stop_token_ids=[-1]), "stop_token_ids[0]", ["-1", "at least 0"]),
    (chat(logit_bias={"a": 1}), "logit_bias.a", ["'a'"]),
    (chat(logit_bias={"1": 101}), "logit_bias.1", ["101", "100"]),
    (chat(logit_bias=[1]), "logit_bias", ["an object"]),
    (chat(logprobs=2), "logprobs", ["2", "true or false"]),
    (chat(logprobs=True, top_logprobs=21), "top_logprobs", ["21", "20"]),
    (chat(top_logprobs=2), None, ["top_logprobs is 2", "set logprobs to true"]),
    (chat(stream="yes"), "stream", ["'yes'", "true or false"]),
    (chat(stream_options={}), None, ["stream_options", "set stream to true"]),
    (chat(stream=True, stream_options={"x": 1}), "stream_options.x", ["Unknown field"]),
    (chat(priority="high"), "priority", ["'high'", "an integer"]),
    (chat(cache_salt=""), "cache_salt", ["empty"]),
    (chat(request_id="a b"), "request_id", ["'a b'"]),
    (chat(model="gpt-4"), "model", ["'gpt-4'", "'toy/bytes'", "Use one of these"]),
    (chat(max_token=5), "max_token", ["Unknown field", "did you mean max_tokens", "leave"]),
    (chat(foo=1, bar=2), "foo", ["foo, bar", "Unknown fields"]),
    (chat(tools=[{"type": "function"}]), "tools[0].function", ["missing"]),
    (chat(tool_choice="required"), None, ["there are no tools"]),
    (
        chat(tool_choice={"type": "function", "function": {"name": "f"}, "x": 1}),
        "tool_choice.x",
        ["Unknown field: tool_choice.x."],
    ),
    (
        chat(tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "any"}}),
        "tool_choice.allowed_tools.tools",
        ["missing"],
    ),
    (chat(tool_choice={"type": "custom"}), "tool_choice.function", ["missing"]),
    (chat(response_format={"type": "xml"}), "response_format.type", ["'xml'", "'json_schema'"]),
    (chat(response_format={"type": "json_schema"}), "response_format", ["must be there"]),
    (chat(structured_outputs={"regexp": "a"}), "structured_outputs.regexp", ["Unknown field"]),
    (chat(structured_outputs={}), "structured_outputs", ["exactly one"]),
    (
        chat(structured_outputs={"regex": "a"}, response_format={"type": "json_object"}),
        None,
        ["leave the other out"],
    ),
    (chat(guided_regex="a"), "guided_regex", ["structured_outputs.regex"]),
    (chat(reasoning_effort="a lot"), "reasoning_effort", ["'a lot'", "'low'"]),
    (
        chat(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"}),
        None,
        ["reasoning_effort", "send one"],
    ),
    (chat(chat_template_kwargs={"odd": 1}), "chat_template_kwargs.odd", ["'odd'", "leave it out"]),
    (
        chat(continue_final_message=True),
        None,
        ["continue_final_message", "set add_generation_prompt to false"],
    ),
    (chat(truncation_side="left"), None, ["truncation_side", "truncate_prompt_tokens"]),
    (chat(truncate_prompt_tokens=-2), "truncate_prompt_tokens", ["-2", "at least -1"]),
    (chat(truncate_prompt_tokens=0), "truncate_prompt_tokens", ["is 0", "at least 1", "-1"]),
    (text(truncate_prompt_tokens=0), "truncate_prompt_tokens", ["is 0", "at least 1", "-1"]),
    (chat(prompt_logprobs=1, stream=True), None, ["prompt_logprobs is 1", "stream"]),
    (chat(prompt_logprobs=21), "prompt_logprobs", ["21", "20"]),
    (chat(allowed_token_ids=[]), "allowed_token_ids", ["empty", "at least 1"]),
    (chat(bad_words=[" "]), "bad_words[0]", ["' '"]),
    (chat(metadata={"a": 5}), "metadata.a", ["5", "a string"]),
    (chat(metadata=dict.fromkeys(map(str, range(17)), "x")), "metadata", ["17", "16"]),
    (chat(store=True), "store", ["stores no answers"]),
    (chat(chat_template="{{x}}"), "chat_template", ["--chat-template"]),
    (chat(chat_template_kwargs={"messages": []}), None, ["'messages'", "leave it out"]),
    (chat(chat_template_kwargs={"self": 1}), None, ["'self'", "leave it out"]),
    (chat(chat_template_kwargs={"a b": 1}), "chat_template_kwargs.a b", ["'a b'", "match"]),
    (chat(use_beam_search=True), "use_beam_search", ["use n"]),
    (chat(echo=True), None, ["echo is true", "the user's"]),
    (chat(messages=[{"role": "user", "content": "template error"}]), "messages", ["refuses"]),
    ((TEXT, {}), "prompt", ["missing", "required"]),
    (text(prompt=None), "prompt", ["null", "a string"]),
    (text(prompt=[]), "prompt", ["empty", "at least one"]),
    (text(prompt=5), "prompt", ["5", "a string"]),
    (text(prompt=[[]]), "prompt", ["[]", "not empty"]),
    (text(prompt=["a", 1]), "prompt", ["item 1", "1", "strings"]),
    (text(prompt=[1, "a"]), "prompt", ["prompt[1]", "'a'", "integer"]),
    (text(prompt=[-1]), "prompt", ["-1", "from 0"]),
    (text(prompt=[True]), "prompt", ["True"]),
    (text(prompt=["a"] * 1025), "prompt", ["1025", "1024"]),
    (text(prompt=["a"] * 100, n=100), None, ["10000", "1024"]),
    (text(prompt=[300]), "prompt", ["300", "256"]),
    (text(prompt="x" * MAX_MODEL_LEN), "prompt", [str(MAX_MODEL_LEN), "Shorten"]),
    (text(logprobs=21), "logprobs", ["21", "20"]),
    (text(logprobs=True), "logprobs", ["true", "an integer"]),
    (text(suffix="end"), "suffix", ["fills in the middle"]),
    (text(best_of=2, n=3), None, ["best_of is 2", "n is 3"]),
    (text(best_of=3, stream=True), None, ["best_of is 3", "stream"]),
    (text(prompt=["a"] * 100, best_of=100), None, ["10000", "1024"]),
    (text(messages=HELLO), "messages", ["Unknown field"]),
    (text(max_tokens=-1), "max_tokens", ["-1", "at least 0"]),
]


@pytest.mark.parametrize(
    ("request_", "param", "words"), BAD, ids=[f"{row[1]}-{row[2][0]}"[:40] for row in BAD]
)
async def test_bad_field_is_named_with_its_limit(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    request_: tuple[str, dict[str, Any]],
    param: str | None,
    words: list[str],
) -> None:
    path, body = request_
    response = await client.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == (404 if param == "model" else 400), error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert (
        param is None
        or param.rpartition(".")[2].partition("[")[0] in error["message"]
        or "The prompt has" in error["message"]
    )
    for word in words:
        assert word in error["message"], error["message"]
    assert len(error["message"]) < 500
    assert not engine.open_ids
    again = await client.post(TEXT, json={"prompt": "a", "max_tokens": 1})
    assert again.status_code == 200


MALFORMED = [
    (b"", "empty"),
    (b"   ", "empty"),
    (b"{", "not valid JSON"),
    (b'{"prompt": "a",}', "not valid JSON"),
    (b'{"prompt": NaN}', "not valid JSON"),
    (b'{"prompt": "\\ud800"}', "not valid JSON"),
    (b'{"prompt": "\xff"}', "not valid JSON"),
    (b'{"temperature": 1e999}', "not valid JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b"[1]", "a JSON array"),
    (b'"hi"', "a JSON string"),
    (b"null", "a JSON null"),
    (b"true", "a JSON boolean"),
    (b"3", "a JSON number"),
]


@pytest.mark.parametrize(("body", "words"), MALFORMED, ids=range(len(MALFORMED)))
async def test_body_that_is_no_object_is_refused(
    client: httpx.AsyncClient, body: bytes, words: str
) -> None:
    response = await client.post(TEXT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert response.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
async def test_other_content_types_are_refused(
    client: httpx.AsyncClient, content_type: str
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = await client.post(TEXT, content=b'{"prompt": "a"}', headers=headers)
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


async def test_a_compressed_body_is_refused_as_such(client: httpx.AsyncClient) -> None:
    body, headers = b'{"prompt": "a"}', {"content-type": "application/json"}
    packed = await client.post(
        TEXT, content=gzip.compress(body), headers=headers | {"content-encoding": "gzip"}
    )
    assert packed.status_code == 415
    assert "'gzip'; compressed bodies are not taken" in packed.json()["error"]["message"]
    plain = await client.post(
        TEXT, content=body, headers=headers | {"content-encoding": "Identity"}
    )
    assert plain.status_code == 200


NULLABLE = [
    (model, name)
    for model in (ChatCompletionRequest, CompletionRequest, EmbeddingRequest, ResponseRequest)
    for name, field in model.model_fields.items()
    if not field.is_required()
]


@pytest.mark.parametrize(("model", "name"), NULLABLE, ids=lambda each: str(each))
def test_null_means_the_default(model: type[RequestBody], name: str) -> None:
    start = {
        ChatCompletionRequest: {"messages": HELLO},
        CompletionRequest: {"prompt": "hi"},
        EmbeddingRequest: {"input": "hi"},
        ResponseRequest: {"input": "hi"},
    }[model]
    assert validate({**start, name: None}, model) == validate({**start}, model)
    schema = model.model_json_schema()["properties"][name]
    assert {"type": "null"} in schema["anyOf"]


async def test_content_type_may_have_parameters(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    response = await client.post(TEXT, content=b'{"prompt": "a"}', headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("is_declared", [True, False])
async def test_large_body_is_refused_before_it_is_read(
    engine: FakeEngine, is_declared: bool
) -> None:
    app = create_app(engine, ServerConfig(max_body_bytes=1000))
    num_read = 0

    async def pieces() -> Any:
        nonlocal num_read
        for _ in range(100):
            num_read += 1
            yield b" " * 100

    headers = {"content-type": "application/json"}
    if is_declared:
        headers["content-length"] = "10000"
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://octavo"
    ) as client:
        response = await client.post(TEXT, content=pieces(), headers=headers)
    assert response.status_code == 413
    assert "1000 bytes" in response.json()["error"]["message"]
    assert num_read < 20


async def test_unknown_route_and_method_have_openais_shape(client: httpx.AsyncClient) -> None:
    missing = await client.get("/v1/nothing")
    wrong = await client.get(CHAT)
    model = await client.get("/v1/models/gpt-4")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "POST" in wrong.json()["error"]["message"]
    assert (model.status_code, model.json()["error"]["code"]) == (404, "model_not_found")


LONG = "a" * (MAX_MODEL_LEN + 1)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (TEXT, {"prompt": LONG}, "prompt"),
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        ("/v1/responses", {"input": LONG}, "input"),
        ("/v1/embeddings", {"input": LONG}, "input"),
        (TEXT, {"prompt": "a", "max_tokens": 10_000}, "max_tokens"),
        (CHAT, {"messages": HELLO, "max_tokens": 10_000}, "max_tokens"),
        (CHAT, {"messages": HELLO, "max_completion_tokens": 10_000}, "max_completion_tokens"),
        ("/v1/responses", {"input": "a", "max_output_tokens": 10_000}, "max_output_tokens"),
    ],
)
async def test_what_the_engine_refuses_is_told_by_the_bodys_field(
    tmp_path: Path, path: str, body: dict[str, Any], param: str
) -> None:
    save_byte_tokenizer(tmp_path)
    async with puppet_engine(tmp_path) as engine:
        app = create_app(engine, ServerConfig())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    others = {"max_tokens", "max_completion_tokens", "max_output_tokens"} - {param}
    assert not any(name in error["message"] for name in others)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
FIELDS = sorted(
    {
        "messages",
        "prompt",
        "model",
        "n",
        "stop",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "stream",
        "stream_options",
        "max_tokens",
        "min_tokens",
        "echo",
        "tools",
        "response_format",
        "chat_template_kwargs",
        "stop_token_ids",
        "request_id",
        "metadata",
    }
)
some_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "tool", ""]), "content": json_values}
    ),
    max_size=3,
)
bodies = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), json_values, max_size=5)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=bodies, messages=some_messages, path=st.sampled_from([CHAT, TEXT]))
async def test_no_body_makes_the_server_fail(
    client: httpx.AsyncClient, body: dict[str, Any], messages: Any, path: str
) -> None:
    body = {"max_tokens": 2, ("messages" if path == CHAT else "prompt"): messages or "x"} | body
    raw = json.dumps(body).encode()
    response = await client.post(path, content=raw, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]

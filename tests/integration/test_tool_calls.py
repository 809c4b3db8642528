"""Tools and thoughts through the official client, against the real server and a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from served_model import ServedModel, served_model
from tiny_models import make_tiny_model

pytestmark = pytest.mark.timeout(600)

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["c", "f"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather", "parameters": PARAMETERS},
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {
    "type": "object", "properties": {}, "additionalProperties": False}}}  # fmt: skip
TOOLS: Any = [WEATHER, TIME]
MESSAGES: Any = [{"role": "user", "content": "How is it?"}]
FORMATS = ["hermes", "llama3_json", "mistral", "pythonic"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return make_tiny_model("llama", folder, max_position_embeddings=4096)


@pytest.fixture(scope="module", params=FORMATS)
def served(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedModel]:
    log = tmp_path_factory.mktemp("log") / "serve.log"
    flags = ("--served-model-name", "tiny", "--tool-call-parser", request.param)
    with served_model(model, log, *flags) as served:
        yield served
        assert served.stop() == 0
        assert not [event for event in served.events() if event["level"] == "error"]


@pytest.fixture
def client(served: ServedModel) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=120) as client:
        yield client


def test_a_named_tool_is_called_once_with_arguments_that_fit(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    asked: Any = {
        "model": "tiny", "messages": MESSAGES, "tools": TOOLS, "tool_choice": choice,
        "max_tokens": 300,
    }  # fmt: skip
    for seed in range(3):
        answer = client.chat.completions.create(**asked, seed=seed)
        # As OpenAI's: a call that the client has named is a plain stop.
        assert answer.choices[0].finish_reason == "stop"
        message = answer.choices[0].message
        assert message.content is None
        (call,) = message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "get_weather"
        jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)
        chunks = list(client.chat.completions.create(**asked, seed=seed, stream=True))
        assert chunks[-1].choices[0].finish_reason == "stop"
        deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or ()]
        assert {delta.index for delta in deltas} == {0}
        assert "".join(d.function.arguments or "" for d in deltas) == call.function.arguments


def test_a_required_call_streams_as_it_is(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": "tiny", "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required",
        "seed": 5, "max_tokens": 300, "parallel_tool_calls": False,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0]
    calls: list[Any] = []
    finish = None
    for chunk in client.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        assert not choice.delta.content
        for delta in choice.delta.tool_calls or ():
            if delta.id is not None:
                assert delta.index == len(calls)
                calls.append([delta.function.name, ""])
            calls[delta.index][1] += delta.function.arguments or ""
        finish = choice.finish_reason or finish
    assert finish == whole.finish_reason == "tool_calls"
    expected = [[c.function.name, c.function.arguments] for c in whole.message.tool_calls or ()]
    assert calls == expected
    assert len(calls) == 1


def test_the_conversation_goes_on_with_the_tools_results(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="required", seed=1,
        parallel_tool_calls=False, max_tokens=300,
    ).choices[0].message  # fmt: skip
    assert first.tool_calls
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in first.tool_calls
    ]
    messages: Any = [*MESSAGES, first.model_dump(exclude_none=True), *results]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, tools=TOOLS, max_tokens=8, extra_body={
            "return_prompt_text": True}
    )  # fmt: skip
    prompt = answer.model_extra["prompt_text"] if answer.model_extra else ""
    assert "sunny" in prompt
    assert first.tool_calls[0].function.name in prompt


def test_without_a_choice_the_model_is_free(client: openai.OpenAI) -> None:
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            tools=TOOLS,
            tool_choice=choice,
            max_tokens=8,
            extra_body={"ignore_eos": True},
        )  # type: ignore[call-overload]
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].finish_reason == "length"


def test_strict_tools_leave_the_text_free(client: openai.OpenAI) -> None:
    strict: Any = [{"type": "function", "function": WEATHER["function"] | {"strict": True}}]
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=strict, max_tokens=12, seed=3
    )
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_tools_and_an_answer_that_follows_a_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    response_format: Any = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema},
    }
    for seed in range(3):
        choice = client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=TOOLS, response_format=response_format,
            seed=seed, max_tokens=300, parallel_tool_calls=False,
        ).choices[0]  # fmt: skip
        if choice.message.tool_calls:
            assert choice.finish_reason == "tool_calls"
        else:
            jsonschema.validate(json.loads(choice.message.content or ""), schema)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a tool that is not there": (
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        "none of the tools",
    ),
    "required without tools": ({"tools": [], "tool_choice": "required"}, "there are no tools"),
    "two of one name": ({"tools": [WEATHER, WEATHER]}, "same name"),
    "a bad name": ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "'a b'"),
    "another kind": ({"tools": [{"type": "web_search"}]}, "'web_search'"),
    "arguments that cannot be": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}},
            "required": ["a"]}}}],
         "tool_choice": "required"},
        "uniqueItems",
    ),
    "a regex beside tools": ({"structured_outputs": {"regex": "a"}}, "tool_choice to none"),
    "a result without its call": (
        {"messages": [*MESSAGES, {"role": "tool", "content": "x"}]},
        "tool_call_id",
    ),
    "no content": ({"messages": [{"role": "user"}]}, "content is missing"),
}  # fmt: skip


def _tool(name: str, **schema: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def _json(**schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


UNIQUE: dict[str, Any] = {"type": "array", "uniqueItems": True}
AT_FAULT: dict[str, tuple[dict[str, Any], str, str]] = {
    "a tool, by the library": (
        {"tools": [TIME, _tool("f", **UNIQUE)], "tool_choice": "required"},
        "tools[1].function.parameters",
        "#/properties/a/uniqueItems",
    ),
    "a tool, before": (
        {"tools": [TIME, _tool("f", extends={})]},
        "tools[1].function.parameters",
        "#/properties/a",
    ),
    "the answer beside tools, by the library": (
        {"response_format": _json(items=UNIQUE)},
        "response_format",
        "#/items/uniqueItems",
    ),
    "the answer beside tools, before": (
        {"response_format": _json(items={"extends": {}})},
        "response_format",
        "#/items",
    ),
    "the same in vLLM's field": (
        {"structured_outputs": {"json": json.dumps(UNIQUE)}},
        "structured_outputs.json",
        "#/uniqueItems",
    ),
}


def refusal_of(served: ServedModel, fields: dict[str, Any]) -> dict[str, Any]:
    """The error of a request with tools and these fields."""
    body = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "max_tokens": 4} | fields
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize(("fields", "param", "place"), AT_FAULT.values(), ids=AT_FAULT.keys())
def test_a_refusal_names_the_schema_at_fault_and_the_place(
    served: ServedModel, fields: dict[str, Any], param: str, place: str
) -> None:
    error = refusal_of(served, fields)
    assert error["param"] == param, error
    assert f"{param} cannot be honoured at {place}: " in error["message"]


@pytest.mark.parametrize(("fields", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_honoured_is_refused(
    served: ServedModel, fields: dict[str, Any], reason: str
) -> None:
    error = refusal_of(served, fields)
    assert reason in error["message"], error

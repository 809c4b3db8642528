"""``POST /v1/responses``: every field, the whole answer, and the events of a stream."""

from __future__ import annotations

import json
import typing
from typing import Any

import httpx
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent, response_create_params

from fake_engine import FakeEngine, expected_text, render
from octavo.grammar import StructuredOutputs
from octavo.server.protocol.responses import ResponseRequest

PATH = "/v1/responses"
HELLO = render([{"role": "user", "content": "Hello"}])
BASE: dict[str, Any] = {"input": "Hello", "max_output_tokens": 4}
LOGPROBS = "message.output_text.logprobs"


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post(PATH, json=BASE | body)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each named as its data says."""
    events = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def test_the_whole_answer(client: httpx.AsyncClient) -> None:
    answer = (await post(client, metadata={"a": "b"}, instructions=None)).json()
    text = expected_text(HELLO, 0, 4)
    assert answer["object"] == "response"
    assert answer["id"].startswith("resp_")
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    (message,) = answer["output"]
    assert message["role"] == "assistant"
    assert message["content"] == [
        {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    ]
    assert answer["usage"] == {
        "input_tokens": len(HELLO),
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": len(HELLO) + 4,
    }
    assert answer["metadata"] == {"a": "b"}
    assert answer["store"] is False


async def test_answers_and_events_have_all_that_the_official_types_require(
    client: httpx.AsyncClient,
) -> None:
    """Python's lets a field be absent; the clients of stricter languages need not."""
    body: dict[str, Any] = {"include": [LOGPROBS], "top_logprobs": 2, "tools": [TOOL]}
    pydantic.TypeAdapter(Response).validate_python((await post(client, **body)).json())
    of_any_kind: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
    for event in events_of(await post(client, **body, stream=True)):
        of_any_kind.validate_python(event)


async def test_an_answer_that_ends_by_itself_is_complete(client: httpx.AsyncClient) -> None:
    stop = expected_text(HELLO, 0, 4)[2]
    answer = (await post(client, stop=stop)).json()
    assert (answer["status"], answer["incomplete_details"]) == ("completed", None)
    assert answer["output"][0]["status"] == "completed"


@pytest.mark.parametrize("has_logprobs", [False, True])
@pytest.mark.parametrize("is_complete", [False, True])
async def test_events_add_up_to_the_whole_answer(
    client: httpx.AsyncClient, has_logprobs: bool, is_complete: bool
) -> None:
    body: dict[str, Any] = {"request_id": "same"}
    if has_logprobs:
        body |= {"include": [LOGPROBS], "top_logprobs": 2}
    if is_complete:
        body["stop"] = expected_text(HELLO, 0, 4)[2]
    whole = (await post(client, **body)).json()
    events = events_of(await post(client, **body, stream=True))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    kinds = [event["type"] for event in events]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed" if is_complete else "response.incomplete",
    ]
    content = whole["output"][0]["content"][0]
    assert "".join(delta["delta"] for delta in deltas) == content["text"]
    assert [one for delta in deltas for one in delta["logprobs"]] == content["logprobs"]
    assert bool(content["logprobs"]) == has_logprobs
    last = events[-1]["response"]
    assert last | {"created_at": 0} == whole | {"created_at": 0}
    assert events[-2]["item"] == whole["output"][0]
    assert events[-3]["part"] == content
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []


async def test_a_failure_in_a_stream_is_an_event(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_midway = "secret details"
    events = events_of(await post(client, stream=True))
    assert events[-1]["type"] == "response.failed"
    response = events[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"]["code"] == "internal_error"
    assert "secret" not in str(events)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


async def test_items_become_messages(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    first = (await post(client, input="Hi", include=[LOGPROBS], top_logprobs=1)).json()
    assert first["output"][0]["content"][0]["logprobs"]
    items = [
        {"role": "user", "content": "Hi"},
        *first["output"],
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "one"},
                {"type": "input_text", "text": "two"},
            ],
        },
    ]
    answer = await post(client, input=items, instructions="Be brief.")
    assert answer.status_code == 200, answer.text
    said = first["output"][0]["content"][0]["text"]
    expected = f"<system>Be brief.<user>Hi<assistant>{said}<user>one\ntwo<assistant>"
    assert bytes(engine.seen[-1][0]) == expected.encode()  # type: ignore[arg-type]


THOUGHT = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
TOOL = {
    "type": "function",
    "name": "f",
    "description": None,
    "parameters": {"type": "object", "properties": {}},
    "strict": True,
}


async def test_calls_and_their_outputs_become_the_chats_messages(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    sunny = {"type": "input_text", "text": "Sunny", "prompt_cache_breakpoint": None}
    items = [
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": []},
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [sunny]},
    ]
    answer = await post(client, input=items, tools=[TOOL], tool_choice="none")
    assert answer.status_code == 200, answer.text
    prompt = bytes(engine.seen[-1][0]).decode()  # type: ignore[arg-type]
    # The fake's template knows no tools: they are told in the messages' text.
    assert "Weather?" in prompt
    assert "Sunny" in prompt
    assert answer.json()["tools"] == [TOOL]
    assert answer.json()["tool_choice"] == "none"


def test_thoughts_that_nothing_was_said_after_are_a_message_without_words() -> None:
    """So that an answer that was cut while the model thought can be sent back."""
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    asked, said = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well."}
    items = [asked, THOUGHT, asked, THOUGHT, said, THOUGHT, call, THOUGHT]
    messages = ResponseRequest.model_validate({"input": items}).conversation().messages
    assert [(one.role, one.text, one.reasoning_content) for one in messages] == [
        ("user", "Hi", None),
        ("assistant", "", "Hm."),
        ("user", "Hi", None),
        ("assistant", "Well.", "Hm."),
        ("assistant", "", "Hm."),
        ("assistant", "", "Hm."),
    ]
    assert [bool(one.tool_calls) for one in messages] == [False] * 4 + [True, False]


def test_thoughts_in_a_row_are_joined_in_order() -> None:
    more = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "So."}]}
    items = [{"role": "user", "content": "Hi"}, THOUGHT, {"type": "reasoning"}, more]
    said = {"role": "assistant", "content": "Well."}
    messages = ResponseRequest.model_validate({"input": [*items, said]}).conversation().messages
    assert [(one.text, one.reasoning_content) for one in messages] == [
        ("Hi", None),
        ("Well.", "Hm.\nSo."),
    ]


async def test_a_forced_call_is_a_grammar(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    named = {"type": "function", "name": "f"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
    for choice in ("required", named, allowed):
        answer = await post(client, tools=[TOOL], tool_choice=choice)
        assert answer.status_code == 200, answer.text
        structure = engine.seen[-1][1].structured_outputs
        assert structure is not None
        assert structure.grammar is not None
        assert answer.json()["tool_choice"] == choice


async def test_a_client_that_keeps_the_thoughts_itself_is_answered(
    client: httpx.AsyncClient,
) -> None:
    """As Codex and inspect-ai ask, so that nothing is lost where nothing is stored."""
    asked = {
        "store": False,
        "include": ["reasoning.encrypted_content", LOGPROBS],
        "reasoning": {"summary": "auto"},
    }
    answer = await post(client, **asked)
    assert answer.status_code == 200, answer.text
    plain = (await post(client, include=[LOGPROBS])).json()
    told = ("output", "reasoning", "usage")
    assert [without_ids(answer.json()[part]) for part in told] == [
        without_ids(plain[part]) for part in told
    ]
    assert answer.json()["reasoning"]["summary"] is None


def without_ids(value: Any) -> Any:
    """An answer's part, less what differs between any two answers."""
    if isinstance(value, list):
        return [without_ids(each) for each in value]
    return {k: v for k, v in value.items() if k not in ("id", "input_tokens_details")}


REFUSED: dict[str, Any] = {
    "store": True,
    "previous_response_id": "resp_1",
    "conversation": "conv_1",
    "prompt": {"id": "x"},
    "background": True,
    "background_options": {},
    "context_management": [{"type": "compaction"}],
    "truncation": "auto",
    "image": {},
    "access_programs": {},
    "enable_response_messages": True,
    "previous_input_messages": [{}],
    "max_tool_calls": 1,
    "tools": [{"type": "web_search"}],
    "tool_choice": "odd",
    "parallel_tool_calls": "odd",
    "service_tier": "flex",
    "moderation": {"model": "x"},
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {},
    "structured_outputs": {"odd": 1},
    "vllm_xargs": {"a": 1},
    "kv_transfer_params": {},
    "media_io_kwargs": {"a": {}},
    "mm_processor_kwargs": {"a": 1},
    "text": {"format": {"type": "odd"}},
    "reasoning": {"summary": "detailed"},
    "stream_options": {"include_obfuscation": True},
    "include": ["file_search_call.results"],
    "n": 2,
}
REACHES_THE_ENGINE: dict[str, tuple[Any, str, Any]] = {
    "temperature": (0.5, "temperature", 0.5),
    "top_p": (0.5, "top_p", 0.5),
    "top_k": (5, "top_k", 5),
    "min_p": (0.5, "min_p", 0.5),
    "repetition_penalty": (1.5, "repetition_penalty", 1.5),
    "presence_penalty": (0.5, "presence_penalty", 0.5),
    "frequency_penalty": (0.5, "frequency_penalty", 0.5),
    "logit_bias": ({"7": 1.0}, "logit_bias", {7: 1.0}),
    "seed": (3, "seed", 3),
    "stop": ("END", "stop", ("END",)),
    "stop_token_ids": ([5], "stop_token_ids", (5,)),
    "include_stop_str_in_output": (True, "include_stop_str_in_output", True),
    "ignore_eos": (True, "ignore_eos", True),
    "min_tokens": (2, "min_tokens", 2),
    "skip_special_tokens": (False, "skip_special_tokens", False),
    "allowed_token_ids": ([97], "allowed_token_ids", (97,)),
    "bad_words": (["no"], "bad_words", ("no",)),
    "max_output_tokens": (2, "max_tokens", 2),
}
HAS_A_TEST_ABOVE = {"input", "instructions", "include", "top_logprobs", "stream", "metadata"}
HAS_A_TEST_ABOVE |= {"request_id"}
UNUSED = {"user": "x", "safety_identifier": "x", "prompt_cache_key": "x"}
UNUSED |= {"include_reasoning": False}  # of no effect on a model that does not think
UNUSED |= {"spaces_between_special_tokens": False}
UNUSED |= {"client_metadata": {"x-codex-turn-metadata": "{}" * 600}}
OTHERS = {"model", "priority", "timeout", "cache_salt", "reasoning", "chat_template_kwargs"}


def test_no_field_is_without_a_test() -> None:
    params: Any = response_create_params.ResponseCreateParamsStreaming
    vllm = str.split("enable_response_messages previous_input_messages structured_outputs stop")
    published = {*typing.get_type_hints(params), *vllm}
    tested = {*REFUSED, *REACHES_THE_ENGINE, *HAS_A_TEST_ABOVE, *UNUSED, *OTHERS}
    ours = {*ResponseRequest.model_fields, *ResponseRequest.unsupported}
    assert (published | ours) - tested == set()


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_honoured_is_refused_by_name(
    client: httpx.AsyncClient, name: str
) -> None:
    response = await post(
        client, **{name: REFUSED[name]}, **({"stream": True} if name == "stream_options" else {})
    )
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert name in error["message"]
    assert str(error["param"]).partition(".")[0] in (name, "None")


@pytest.mark.parametrize("name", REACHES_THE_ENGINE)
async def test_sampling_fields_reach_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, name: str
) -> None:
    value, param, expected = REACHES_THE_ENGINE[name]
    await post(client)
    assert getattr(engine.seen[-1][1], param) != expected
    assert (await post(client, **{name: value})).status_code == 200
    assert getattr(engine.seen[-1][1], param) == expected


async def test_other_fields_do_what_they_say(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    plain = (await post(client)).json()["output"][0]["content"][0]["text"]
    answer = (
        await post(
            client,
            model="toy/bytes",
            priority=3,
            cache_salt="t",
            timeout=60,
            reasoning={"effort": "low"},
            chat_template_kwargs={"enable_thinking": True},
            **UNUSED,
        )
    ).json()
    assert answer["output"][0]["content"][0]["text"] == plain
    assert (engine.seen[-1][2].priority, engine.seen[-1][2].cache_salt) == (3, "t")
    assert 0 < (engine.seen[-1][2].timeout_s or 0) <= 60
    assert engine.template_kwargs["reasoning_effort"] == "low"
    assert engine.template_kwargs["enable_thinking"] is True
    assert answer["reasoning"]["effort"] == "low"
    assert (answer["user"], answer["prompt_cache_key"]) == ("x", "x")


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("body", "structure"),
    [
        ({"text": {"format": {"type": "text"}}}, None),
        (
            {"text": {"format": {"type": "json_object"}}},
            StructuredOutputs(json_object=True, asked_by="text.format"),
        ),
        (
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "x",
                        "schema": SCHEMA,
                        "strict": True,
                    }
                }
            },
            StructuredOutputs(json=SCHEMA, asked_by="text.format"),
        ),
        ({"structured_outputs": {"regex": "a+"}}, StructuredOutputs(regex="a+")),
    ],
    ids=["text", "object", "schema", "regex"],
)
async def test_structure_reaches_the_engine(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    body: dict[str, Any],
    structure: StructuredOutputs | None,
) -> None:
    answer = await post(client, **body)
    assert answer.status_code == 200, answer.text
    assert engine.seen[-1][1].structured_outputs == structure
    assert answer.json()["text"] == body.get("text", {"format": {"type": "text"}})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "schema belongs to type"),
        (
            {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
            "leave the other out",
        ),
        ({"input": []}, "input is empty"),
        ({"input": 5}, "input is 5"),
        ({"input": [{"type": "function_call"}]}, "input[0].call_id is missing"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "send the item itself"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "'web_search_call'; those taken"),
        ({"client_metadata": dict.fromkeys(map(str, range(65)), "x")}, "at most 64"),
        ({"input": [{"type": "reasoning", "summary": [{}]}]}, "input[0].summary"),
        ({"input": [{"type": "reasoning"}]}, "no message and no call"),
        ({"tools": [{"type": "web_search"}]}, "'web_search'"),
        ({"tools": [{"type": "function"}]}, "name is missing"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "none of the tools"),
        ({"input": [{"role": "tool", "content": "x"}]}, "'tool'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "'input_image'"),
        ({"input": [{"role": "user", "content": "x", "odd": 1}]}, "input[0].odd"),
        ({"top_logprobs": 2}, "include does not hold"),
        ({"include": ["odd"]}, "include holds 'odd'"),
        ({"stream_options": {}}, "stream is not true"),
        ({"chat_template_kwargs": {"messages": []}}, "the server sets itself"),
        (
            {
                "reasoning": {"effort": "low"},
                "chat_template_kwargs": {"reasoning_effort": "low"},
            },
            "send one",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens is 0"),
    ],
)
async def test_bad_bodies_are_refused(
    client: httpx.AsyncClient, body: dict[str, Any], words: str
) -> None:
    response = await post(client, **body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        (
            {"chat_template_kwargs": {"reasoning_effort": "low"}},
            "chat_template_kwargs.reasoning_effort",
        ),
    ],
)
async def test_an_effort_that_the_template_does_not_read_is_refused_by_its_own_name(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    body: dict[str, Any],
    param: str,
) -> None:
    monkeypatch.setattr(engine, "template_reads", lambda variable: False)
    error = (await post(client, **body)).json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_field")
    assert error["message"].startswith(f"{param} is set")

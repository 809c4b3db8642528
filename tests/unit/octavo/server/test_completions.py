"""What the two generating routes answer, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from fake_engine import EOS, FakeEngine, expected_ids, expected_text, render
from octavo.engine.request_options import RequestOptions
from octavo.outputs import TokenLogprobs
from octavo.server.logprobs import LogprobWriter, TextOffsets

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]
RENDERED = render(MESSAGES)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end with [DONE]."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    return await client.post(path, json=body)


async def test_chat_answers_with_message_reason_and_usage(client: httpx.AsyncClient) -> None:
    response = await post(client, CHAT, messages=MESSAGES, max_tokens=5)
    answer = response.json()
    assert response.status_code == 200
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "toy/bytes"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": expected_text(RENDERED, 0, 5),
                "refusal": None,
            },
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": len(RENDERED),
        "completion_tokens": 5,
        "total_tokens": len(RENDERED) + 5,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def test_chat_without_a_limit_may_fill_the_context(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await post(client, CHAT, messages=MESSAGES, stop=["a"])
    assert engine.seen[0][1].max_tokens is None


async def test_stream_of_chat_adds_up_to_the_whole_answer(client: httpx.AsyncClient) -> None:
    response = await post(client, CHAT, messages=MESSAGES, max_tokens=6, n=3, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events_of(response)
    roles = [chunk["choices"][0] for chunk in chunks[:3]]
    assert [choice["index"] for choice in roles] == [0, 1, 2]
    assert all(choice["delta"] == {"role": "assistant", "content": ""} for choice in roles)
    texts = ["", "", ""]
    reasons: list[str | None] = [None, None, None]
    for chunk in chunks[3:]:
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["id"] == chunks[0]["id"]
        assert "usage" not in chunk
        (choice,) = chunk["choices"]
        assert reasons[choice["index"]] is None, "nothing comes after the finish"
        texts[choice["index"]] += choice["delta"].get("content", "")
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [expected_text(RENDERED, choice, 6) for choice in range(3)]
    assert reasons == ["length"] * 3


async def test_stream_tells_usage_once_at_the_end(client: httpx.AsyncClient) -> None:
    response = await post(
        client,
        CHAT,
        messages=MESSAGES,
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = events_of(response)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert last["usage"]["prompt_tokens"] == len(RENDERED)


async def test_stream_tells_usage_continuously_when_asked(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = await post(
        client, TEXT, prompt="ab", max_tokens=4, stream=True, stream_options=options
    )
    counts = [chunk["usage"]["completion_tokens"] for chunk in events_of(response)]
    assert counts == sorted(counts)
    assert counts[-1] == 4


async def test_stop_string_is_told_as_the_reason(client: httpx.AsyncClient) -> None:
    text = expected_text("ab", 0, 4)
    response = await post(client, TEXT, prompt="ab", max_tokens=9, stop=text[2])
    (choice,) = response.json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", text[2])
    streamed = await post(client, TEXT, prompt="ab", max_tokens=9, stop=[text[2]], stream=True)
    last = events_of(streamed)[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", text[2])


async def test_prompts_times_n_make_choices_in_order(client: httpx.AsyncClient) -> None:
    response = await post(client, TEXT, prompt=["ab", "xyz"], n=2, max_tokens=3)
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["text"] for choice in choices] == [
        expected_text(prompt, choice, 3) for prompt in ("ab", "xyz") for choice in (0, 1)
    ]
    assert response.json()["usage"]["prompt_tokens"] == 5
    assert response.json()["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3]]], ids=["ids", "list-of-ids"])
async def test_prompt_of_token_ids_goes_to_the_engine_as_it_is(
    client: httpx.AsyncClient, engine: FakeEngine, prompt: Any
) -> None:
    response = await post(client, TEXT, prompt=prompt, max_tokens=2, return_token_ids=True)
    assert engine.seen[0][0] == [1, 2, 3]
    (choice,) = response.json()["choices"]
    assert choice["token_ids"] == expected_ids([1, 2, 3], 0, 2)
    assert choice["prompt_token_ids"] == [1, 2, 3]


async def test_each_streamed_choice_tells_the_token_ids_of_its_prompt_once(
    client: httpx.AsyncClient,
) -> None:
    prompts = [[1, 2, 3], [4, 5]]
    asked = {"prompt": prompts, "n": 2, "max_tokens": 3, "return_token_ids": True}
    told: list[list[list[int]]] = [[], [], [], []]
    for chunk in events_of(await post(client, TEXT, **asked, stream=True)):
        (choice,) = chunk["choices"]
        if choice.get("prompt_token_ids") is not None:
            told[choice["index"]].append(choice["prompt_token_ids"])
    assert told == [[prompts[0]], [prompts[0]], [prompts[1]], [prompts[1]]]


async def test_chat_returns_token_ids_when_asked(client: httpx.AsyncClient) -> None:
    body = {"messages": MESSAGES, "max_tokens": 3, "return_token_ids": True}
    answer = (await post(client, CHAT, **body)).json()
    assert answer["prompt_token_ids"] == list(RENDERED.encode())
    expected = expected_ids(list(RENDERED.encode()), 0, 3)
    assert answer["choices"][0]["token_ids"] == expected
    chunks = events_of(await post(client, CHAT, **body, stream=True))
    assert chunks[0]["prompt_token_ids"] == list(RENDERED.encode())
    streamed = [id_ for chunk in chunks[1:] for id_ in chunk["choices"][0]["token_ids"]]
    assert streamed == expected


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_begins_with_the_prompt(client: httpx.AsyncClient, stream: bool) -> None:
    response = await post(client, TEXT, prompt=[104, 105], max_tokens=2, echo=True, stream=stream)
    if stream:
        text = "".join(chunk["choices"][0]["text"] for chunk in events_of(response))
    else:
        text = response.json()["choices"][0]["text"]
    assert text == "hi" + expected_text("hi", 0, 2)


@pytest.mark.parametrize("prompt", ["hi", [104, 105], [104]], ids=["text", "ids", "one-token"])
async def test_echo_with_logprobs_scores_the_prompt_too(
    client: httpx.AsyncClient, engine: FakeEngine, prompt: Any
) -> None:
    body = {"prompt": prompt, "max_tokens": 2, "echo": True, "logprobs": 2, "n": 2}
    choices = (await post(client, TEXT, **body)).json()["choices"]
    assert engine.seen[0][1].prompt_logprobs == 2
    num_prompt = len(prompt)
    for choice in choices:
        logprobs = choice["logprobs"]
        assert "".join(logprobs["tokens"]) == choice["text"]
        assert logprobs["text_offset"] == list(range(num_prompt + 2))
        assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
        assert all(isinstance(value, float) for value in logprobs["token_logprobs"][1:])
        assert [len(top) for top in logprobs["top_logprobs"][1:]] == [2] * (num_prompt + 1)
    streamed: list[dict[str, Any]] = [{"text": "", "logprobs": {}} for _ in choices]
    for chunk in events_of(await post(client, TEXT, **body, stream=True)):
        (choice,) = chunk["choices"]
        streamed[choice["index"]]["text"] += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            streamed[choice["index"]]["logprobs"].setdefault(name, []).extend(values)
    assert streamed == [{name: choice[name] for name in streamed[0]} for choice in choices]


async def test_no_tokens_may_be_asked_for_to_score_a_prompt(client: httpx.AsyncClient) -> None:
    body = {"prompt": "hey", "max_tokens": 0, "echo": True, "logprobs": 0}
    answer = (await post(client, TEXT, **body)).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hey", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -2.0, -2.0]
    assert choice["logprobs"]["top_logprobs"] == [None, {"e": -2.0}, {"y": -2.0}]
    assert answer["usage"]["completion_tokens"] == 0
    (chunk,) = [
        chunk
        for chunk in events_of(await post(client, TEXT, **body, stream=True))
        if chunk["choices"][0]["text"]
    ]
    assert chunk["choices"][0]["logprobs"] == choice["logprobs"]


def test_a_token_is_among_its_alternatives_also_where_others_are_likelier() -> None:
    likelier = TokenLogprobs(7, -3.0, 5, [1, 2], [-0.5, -1.0])
    offsets = TextOffsets(None, [], skip_special_tokens=True)
    written = LogprobWriter(None).completion([likelier], offsets)
    (top,) = written.top_logprobs
    assert top == {"token_id:1": -0.5, "token_id:2": -1.0, "token_id:7": -3.0}


async def test_prompt_logprobs_have_vllms_shape(client: httpx.AsyncClient) -> None:
    text = await post(client, TEXT, prompt=[97, 99], max_tokens=1, prompt_logprobs=1)
    entry = {"99": {"logprob": -2.0, "rank": 1, "decoded_token": "c"}}
    assert text.json()["choices"][0]["prompt_logprobs"] == [None, entry]
    chat = await post(client, CHAT, messages=MESSAGES, max_tokens=1, prompt_logprobs=0)
    scores = chat.json()["prompt_logprobs"]
    assert len(scores) == len(RENDERED)
    assert scores[0] is None
    assert [list(score) for score in scores[1:]] == [[str(ord(c))] for c in RENDERED[1:]]


async def test_best_of_answers_with_the_likeliest_choices(client: httpx.AsyncClient) -> None:
    body = {"prompt": ["ab", "xyz"], "n": 2, "best_of": 3, "max_tokens": 2}
    answer = (await post(client, TEXT, **body)).json()
    # The fake's later choices are likelier.
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(
        enumerate(expected_text(prompt, choice, 2) for prompt in ("ab", "xyz") for choice in (2, 1))
    )
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 12


async def test_a_continued_message_may_be_echoed(client: httpx.AsyncClient) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "Well, "}]
    body = {
        "messages": messages,
        "max_tokens": 3,
        "echo": True,
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    whole = (await post(client, CHAT, **body)).json()["choices"][0]["message"]["content"]
    assert whole == "Well, " + expected_text(render(messages, False), 0, 3)
    chunks = events_of(await post(client, CHAT, **body, stream=True))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole


async def test_a_function_to_be_called_may_be_named_without_a_type(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """As huggingface_hub's client names it, and vLLM takes it."""
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    body = {"messages": MESSAGES, "tools": [{"type": "function", "function": function}]}
    for named in ({"type": "function", "function": {"name": "f"}}, {"function": {"name": "f"}}):
        response = await post(client, CHAT, **body, tool_choice=named, max_tokens=4)
        assert response.status_code == 200, response.text
    typed, untyped = (params.structured_outputs for _, params, _ in engine.seen)
    assert typed == untyped is not None


async def test_chat_logprobs_have_openais_shape(client: httpx.AsyncClient) -> None:
    body = {"messages": MESSAGES, "max_tokens": 2, "logprobs": True, "top_logprobs": 2}
    content = (await post(client, CHAT, **body)).json()["choices"][0]["logprobs"]["content"]
    text = expected_text(RENDERED, 0, 2)
    assert [token["token"] for token in content] == list(text)
    assert [token["bytes"] for token in content] == [[ord(letter)] for letter in text]
    assert all(token["logprob"] == -0.5 for token in content)
    assert [len(token["top_logprobs"]) for token in content] == [2, 2]
    chunks = events_of(await post(client, CHAT, **body, stream=True))
    streamed = [
        token
        for chunk in chunks[1:]
        for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content


async def test_completion_logprobs_have_equal_lists_and_running_offsets(
    client: httpx.AsyncClient,
) -> None:
    body = {"prompt": "ab", "max_tokens": 3, "logprobs": 1}
    logprobs = (await post(client, TEXT, **body)).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == list(expected_text("ab", 0, 3))
    assert logprobs["text_offset"] == [0, 1, 2]
    assert {len(values) for values in logprobs.values()} == {3}
    streamed: dict[str, list[Any]] = {name: [] for name in logprobs}
    for chunk in events_of(await post(client, TEXT, **body, stream=True)):
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            streamed[name] += values
    assert streamed == logprobs


async def test_sampling_fields_reach_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    asked = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 42,
        "min_tokens": 2,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "stop_token_ids": [5],
    }
    await post(
        client,
        CHAT,
        messages=MESSAGES,
        max_completion_tokens=3,
        logit_bias={"7": -1.5},
        stop=["x", "yz"],
        priority=-3,
        cache_salt="tenant",
        chat_template_kwargs={"enable_thinking": False},
        **asked,
    )
    _, params, options = engine.seen[0]
    assert {name: getattr(params, name) for name in asked} == {**asked, "stop_token_ids": (5,)}
    assert params.max_tokens == 3
    assert params.logit_bias == {7: -1.5}
    assert tuple(params.stop) == ("x", "yz")
    assert options == RequestOptions(priority=-3, cache_salt="tenant")
    assert engine.template_kwargs == {
        "enable_thinking": False,
        "add_generation_prompt": True,
        "continue_final_message": False,
    }


async def test_null_means_the_default(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    names = ("temperature", "top_p", "n", "stop", "seed", "max_tokens", "stream", "logit_bias")
    response = await post(client, TEXT, prompt="a", **dict.fromkeys(names))
    assert response.status_code == 200
    params = engine.seen[0][1]
    assert (params.temperature, params.top_p, params.n, params.max_tokens) == (1.0, 1.0, 1, 16)


async def test_message_parts_are_joined_and_developers_are_systems(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "rule"}, {"role": "user", "content": parts}]
    await post(client, CHAT, messages=messages, max_tokens=1)
    assert engine.seen[0][0] == list(b"<system>rule<user>one\ntwo<assistant>")


HARMLESS = {
    "user": "someone",
    "store": False,
    "metadata": None,
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "tool_choice": "none",
    "tools": None,
    "response_format": {"type": "text"},
    "structured_outputs": None,
    "modalities": ["text"],
    "use_beam_search": False,
    "length_penalty": 1.0,
    "bad_words": [],
    "stream_options": None,
    "safety_identifier": "x",
    "prompt_cache_key": "y",
}


async def test_defaults_of_official_clients_do_no_harm(client: httpx.AsyncClient) -> None:
    response = await post(client, CHAT, messages=MESSAGES, max_tokens=1, **HARMLESS)
    assert response.status_code == 200, response.text


async def test_an_answers_message_can_be_sent_back(client: httpx.AsyncClient) -> None:
    first = await post(client, CHAT, messages=MESSAGES, max_tokens=2)
    answer = first.json()["choices"][0]["message"] | {
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    second = await post(client, CHAT, messages=[*MESSAGES, answer, *MESSAGES], max_tokens=2)
    assert second.status_code == 200, second.text


async def test_without_a_tokenizer_only_ids_are_taken(client: httpx.AsyncClient) -> None:
    from octavo.config import ServerConfig
    from octavo.server.app import create_app

    app = create_app(FakeEngine(has_tokenizer=False), ServerConfig())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://octavo"
    ) as client:
        text = await post(client, TEXT, prompt="hi", max_tokens=1)
        chat = await post(client, CHAT, messages=MESSAGES, max_tokens=1)
        response = await post(client, "/v1/responses", input="hi")
        ids = await post(client, TEXT, prompt=[5], max_tokens=1, logprobs=1)
    assert text.status_code == 400
    assert "--skip-tokenizer-init" in text.json()["error"]["message"]
    for refused, field in ((chat, "messages"), (response, "input")):
        assert refused.json()["error"]["code"] == "no_chat_template"
        assert refused.json()["error"]["param"] == field
    assert ids.json()["choices"][0]["logprobs"]["tokens"][0].startswith("token_id:")


async def test_last_valid_token_id_is_taken_and_the_next_refused(
    client: httpx.AsyncClient,
) -> None:
    assert (await post(client, TEXT, prompt=[EOS], max_tokens=1)).status_code == 200
    refused = await post(client, TEXT, prompt=[EOS + 1], max_tokens=1)
    assert refused.status_code == 400
    assert "257" in refused.json()["error"]["message"]
    assert "256" in refused.json()["error"]["message"]

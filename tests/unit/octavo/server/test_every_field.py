"""Every field of OpenAI's and vLLM's bodies: it changes what it should, or is refused by name.

The names come from the official client and from what is published of vLLM 0.24's protocol, so
that a field that appears there and is not in the tables fails the test.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from openai.types import completion_create_params as openai_completion
from openai.types.chat import completion_create_params as openai_chat

from fake_engine import EOS, FakeEngine, expected_text, render
from octavo.engine.request_options import RequestOptions
from octavo.grammar import StructuredOutputs
from octavo.sampling_params import SamplingParams
from octavo.server.protocol.chat import ChatCompletionRequest
from octavo.server.protocol.completion import CompletionRequest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
BASES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HELLO, "max_tokens": 6},
    TEXT: {"prompt": "abc", "max_tokens": 6},
}
VLLM_BOTH = str.split("""
    model frequency_penalty logit_bias logprobs max_tokens n presence_penalty response_format seed
    stop stream stream_options temperature top_p user use_beam_search top_k min_p
    repetition_penalty length_penalty stop_token_ids include_stop_str_in_output ignore_eos
    min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens
    truncation_side prompt_logprobs allowed_token_ids echo add_special_tokens structured_outputs
    priority request_id return_tokens_as_token_ids return_token_ids cache_salt
    kv_transfer_params vllm_xargs repetition_detection thinking_token_budget
""")
VLLM = {
    CHAT: str.split("""
        messages top_logprobs max_completion_tokens tools tool_choice reasoning_effort
        include_reasoning parallel_tool_calls bad_words add_generation_prompt
        continue_final_message documents chat_template chat_template_kwargs media_io_kwargs
        mm_processor_kwargs return_prompt_text
    """),
    TEXT: ["prompt", "suffix", "prompt_embeds", "best_of"],
}


@dataclass
class Seen:
    """One exchange: what the engine was asked and what the client got."""

    params: SamplingParams
    prompt: str | list[int]
    options: RequestOptions
    template: dict[str, Any]
    answer: dict[str, Any]
    text: str

    @property
    def choice(self) -> dict[str, Any]:
        choice: dict[str, Any] = self.answer["choices"][0]
        return choice

    @property
    def content(self) -> str:
        message = self.choice.get("message")
        return self.choice["text"] if message is None else message["content"]


@dataclass(frozen=True)
class Works:
    """``value`` with ``more`` beside it passes ``check``, and without it does not."""

    value: Any
    check: Callable[[Seen], bool]
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """Answered with 400 and the field's name."""

    value: Any


@dataclass(frozen=True)
class Unused:
    """By its definition of no effect on the answer: taken, and documented so."""

    value: Any


def param(name: str, value: Any, **more: Any) -> Works:
    """It reaches the engine under its name."""
    wanted = tuple(value) if isinstance(value, list) else value
    return Works(value, lambda seen: bool(getattr(seen.params, name) == wanted), more)


def template(name: str, value: Any, **more: Any) -> Works:
    """It reaches the chat template under its name."""
    return Works(value, lambda seen: bool(seen.template.get(name) == value), more)


def extra(name: str, value: Any) -> Works:
    return Works(value, lambda seen: bool(getattr(seen.options, name) == value))


Row = Works | Refused | Unused
LETTER = expected_text("abc", 0, 6)[3]
BOTH: dict[str, Row] = {
    "model": Works("toy/bytes", lambda seen: seen.answer["model"] == "toy/bytes"),
    "frequency_penalty": param("frequency_penalty", 0.5),
    "presence_penalty": param("presence_penalty", 0.5),
    "repetition_penalty": param("repetition_penalty", 1.5),
    "logit_bias": Works({"7": 2.0}, lambda seen: seen.params.logit_bias == {7: 2.0}),
    "max_tokens": param("max_tokens", 3),
    "n": Works(2, lambda seen: len(seen.answer["choices"]) == 2),
    "seed": param("seed", 11),
    "stop": param("stop", ["END"]),
    "stream": Works(True, lambda seen: seen.text.endswith("data: [DONE]\n\n")),
    "stream_options": Works(
        {"include_usage": True, "continuous_usage_stats": True},
        lambda seen: '"usage":{' in seen.text,
        {"stream": True},
    ),
    "temperature": param("temperature", 0.5),
    "top_p": param("top_p", 0.5),
    "top_k": param("top_k", 5),
    "min_p": param("min_p", 0.5),
    "stop_token_ids": param("stop_token_ids", [5]),
    "include_stop_str_in_output": param("include_stop_str_in_output", True),
    "ignore_eos": param("ignore_eos", True),
    "min_tokens": param("min_tokens", 2),
    "skip_special_tokens": param("skip_special_tokens", False),
    "spaces_between_special_tokens": Unused(False),
    "truncate_prompt_tokens": Works(2, lambda seen: len(seen.prompt) == 2),
    "truncation_side": Works(
        "right",
        lambda seen: list(seen.prompt)[-1:] != [ord("c")] and list(seen.prompt)[-1:] != [62],
        {"truncate_prompt_tokens": 3},
    ),
    "prompt_logprobs": Works(2, lambda seen: "prompt_logprobs" in seen.text),
    "allowed_token_ids": param("allowed_token_ids", [97, 98]),
    "bad_words": param("bad_words", ["no"]),
    "add_special_tokens": Works(True, lambda seen: seen.prompt[0] == EOS),
    "priority": extra("priority", 3),
    "cache_salt": extra("cache_salt", "tenant"),
    "timeout": Works(60.0, lambda seen: 0 < (seen.options.timeout_s or 0) <= 60.0),
    "request_id": Works("mine", lambda seen: seen.answer["id"].endswith("-mine")),
    "return_token_ids": Works(True, lambda seen: len(seen.choice.get("token_ids", ())) == 6),
    "return_tokens_as_token_ids": Works(
        True, lambda seen: '"token_id:' in seen.text, {"logprobs": True}
    ),
    "user": Unused("someone"),
    "metadata": Unused({"a": "b"}),
    "safety_identifier": Unused("x"),
    "prompt_cache_key": Unused("x"),
    "store": Refused(True),
    "service_tier": Refused("priority"),
    "use_beam_search": Refused(True),
    "length_penalty": Refused(2.0),
    "kv_transfer_params": Refused({"a": 1}),
    "vllm_xargs": Refused({"a": 1}),
    "repetition_detection": Refused({"min_count": 2}),
    "thinking_token_budget": Refused(5),
    "prompt_cache_retention": Refused("24h"),
    "prompt_cache_options": Refused({"mode": "explicit"}),
    "moderation": Refused({"model": "x"}),
    "response_format": Works(
        {"type": "json_object"},
        lambda seen: (
            seen.params.structured_outputs
            == StructuredOutputs(json_object=True, asked_by="response_format")
        ),
    ),
    "structured_outputs": Works(
        {"regex": "a+"},
        lambda seen: seen.params.structured_outputs == StructuredOutputs(regex="a+"),
    ),
    "guided_json": Refused({}),
    "guided_json_object": Refused(True),
    "guided_regex": Refused("a"),
    "guided_choice": Refused(["a"]),
    "guided_grammar": Refused("start: A"),
    "guided_whitespace_pattern": Refused(" "),
    "guided_decoding_backend": Refused("auto"),
    "structural_tag": Refused("{}"),
}
TOOL = {"type": "function", "function": {"name": "get_time"}}
ASSISTANT = [*HELLO, {"role": "assistant", "content": "I am"}]
ROWS: dict[str, dict[str, Row]] = {
    CHAT: {
        **BOTH,
        "messages": Works(
            [{"role": "user", "content": "Bye"}],
            lambda seen: bytes(seen.prompt).startswith(b"<user>Bye"),  # type: ignore[arg-type]
        ),
        "max_completion_tokens": Works(
            3, lambda seen: seen.params.max_tokens == 3, {"max_tokens": None}
        ),
        "logprobs": Works(True, lambda seen: len(seen.choice["logprobs"]["content"]) == 6),
        "top_logprobs": param("logprobs", 2, logprobs=True),
        "echo": Works(True, lambda seen: seen.content[:4] == "I am", {"messages": ASSISTANT}),
        "add_generation_prompt": template("add_generation_prompt", False),
        "continue_final_message": template(
            "continue_final_message", True, add_generation_prompt=False, messages=ASSISTANT
        ),
        "documents": template("documents", [{"title": "a", "text": "b"}]),
        "chat_template_kwargs": Works(
            {"enable_thinking": True}, lambda seen: seen.template.get("enable_thinking") is True
        ),
        "reasoning_effort": template("reasoning_effort", "low"),
        "return_prompt_text": Works(
            True, lambda seen: seen.answer.get("prompt_text") == render(HELLO)
        ),
        "chat_template": Refused("{{ x }}"),
        "audio": Refused({"voice": "x"}),
        "modalities": Refused(["text", "audio"]),
        "prediction": Refused({"type": "content", "content": "x"}),
        "web_search_options": Refused({}),
        "verbosity": Refused("low"),
        "media_io_kwargs": Refused({"a": {}}),
        "mm_processor_kwargs": Refused({"a": 1}),
        "functions": Refused([{"name": "f"}]),
        "function_call": Refused({"name": "f"}),
        "tools": Works(
            [TOOL],
            lambda seen: b"get_time" in bytes(seen.prompt),  # type: ignore[arg-type]
        ),
        "tool_choice": Works(
            "required", lambda seen: seen.params.structured_outputs is not None, {"tools": [TOOL]}
        ),
        "parallel_tool_calls": Works(
            False,
            lambda seen: seen.options.text_end is not None,
            {"tools": [TOOL]},
        ),
        "include_reasoning": Refused("odd"),
    },
    TEXT: {
        **BOTH,
        "prompt": Works("bye", lambda seen: seen.prompt == "bye"),
        "logprobs": Works(2, lambda seen: len(seen.choice["logprobs"]["tokens"]) == 6),
        "return_tokens_as_token_ids": Works(
            True, lambda seen: '"token_id:' in seen.text, {"logprobs": 1}
        ),
        "best_of": param("n", 3),
        "echo": Works(True, lambda seen: seen.content.startswith("abc")),
        "add_special_tokens": Works(False, lambda seen: seen.prompt == list(b"abc")),
        "suffix": Refused("end"),
        "prompt_embeds": Refused("AAAA"),
    },
}


def published(path: str) -> set[str]:
    """The fields that OpenAI's client and vLLM have."""
    module = openai_chat if path == CHAT else openai_completion
    params: Any = module.CompletionCreateParamsStreaming
    return {*typing.get_type_hints(params), *VLLM_BOTH, *VLLM[path]}


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, ChatCompletionRequest), (TEXT, CompletionRequest)]
)
def test_no_field_is_without_a_row(path: str, body: type[ChatCompletionRequest]) -> None:
    assert published(path) - ROWS[path].keys() == set()
    assert {*body.model_fields, *body.unsupported} - ROWS[path].keys() == set()


async def ask(client: httpx.AsyncClient, engine: FakeEngine, path: str, body: Any) -> Seen:
    engine.seen.clear()
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    is_stream = response.headers["content-type"].startswith("text/event-stream")
    prompt, params, options = engine.seen[0]
    answer = {} if is_stream else response.json()
    return Seen(params, prompt, options, engine.template_kwargs, answer, response.text)


CASES = [
    pytest.param(path, name, row, id=f"{path.split('/')[2]}-{name}")
    for path, rows in ROWS.items()
    for name, row in rows.items()
]


@pytest.mark.parametrize(("path", "name", "row"), CASES)
async def test_field_works_or_is_refused_by_name(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, name: str, row: Row
) -> None:
    base = BASES[path] | (row.more if isinstance(row, Works) else {})
    if isinstance(row, Refused):
        response = await client.post(path, json=base | {name: row.value})
        error = response.json()["error"]
        assert response.status_code == 400
        assert str(error["param"]).partition(".")[0].partition("[")[0] == name
        assert name in error["message"]
        return
    before = await ask(client, engine, path, base)
    after = await ask(client, engine, path, base | {name: row.value})
    if isinstance(row, Unused):
        assert before.params == after.params
        assert before.content == after.content
    else:
        assert row.check(after)
        # What cannot be left out, or says what is so anyway, has nothing to differ from.
        if name not in ("model", "messages", "prompt"):
            assert name == "stream_options" or not _passes(row, before)


def _passes(row: Works, seen: Seen) -> bool:
    try:
        return row.check(seen)
    except (KeyError, TypeError):
        return False

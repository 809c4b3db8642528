"""Constrained answers from the real server: kinds of constraints, refusals, hostile grammars."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from served_model import ServedModel, served_model
from tiny_models import make_tiny_model

pytestmark = pytest.mark.timeout(600)

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    model = make_tiny_model("llama", tmp_path_factory.mktemp("model"))
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with served_model(model, log, "--served-model-name", "tiny") as served:
        yield served
        assert served.stop() == 0
        assert not [event for event in served.events() if event["level"] == "error"]


@pytest.fixture
def client(served: ServedModel) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=120) as client:
        yield client


def ask(served: ServedModel, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 200, "temperature": 1.0, **fields}
    return httpx.post(f"{served.url}/v1/completions", json=body, timeout=120)


def text(served: ServedModel, **structured_outputs: Any) -> str:
    answer = ask(served, structured_outputs=structured_outputs, seed=1)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop", choice
    return str(choice["text"])


def test_json_schema_in_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Who?"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "strict": True, "schema": SCHEMA},
        },
        max_tokens=300,
        n=3,
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)


def test_a_stream_is_constrained_too(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Who?"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": SCHEMA},
        },
        max_tokens=300,
        stream=True,
    )
    whole = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    jsonschema.validate(json.loads(whole), SCHEMA)


def test_any_json_object(served: ServedModel) -> None:
    answers = [
        ask(served, response_format={"type": "json_object"}, seed=seed, max_tokens=400).json()
        for seed in range(4)
    ]
    choices = [answer["choices"][0] for answer in answers]
    for choice in choices:
        assert choice["text"].startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["text"]), dict)


def test_every_kind_of_structured_outputs(served: ServedModel) -> None:
    assert re.fullmatch(r"[a-c]{3}-\d{2}", text(served, regex=r"[a-c]{3}-\d{2}"))
    assert text(served, choice=["yes", "no", "per/haps"]) in ("yes", "no", "per/haps")
    jsonschema.validate(json.loads(text(served, json=SCHEMA)), SCHEMA)
    jsonschema.validate(json.loads(text(served, json=json.dumps(SCHEMA))), SCHEMA)
    assert " " not in text(served, json={"const": [1, 2]}, disable_any_whitespace=True)
    lark = 'start: "a" INNER "b"\nINNER: /[0-9]{1,3}/'
    assert re.fullmatch(r"a\d{1,3}b", text(served, grammar=lark))
    gbnf = 'root ::= "(" [0-9] ("," [0-9])? ")"'
    assert re.fullmatch(r"\(\d(,\d)?\)", text(served, grammar=gbnf))
    open_map = {"properties": {"a": {"const": 1}}, "required": ["a"], "type": "object"}
    closed = text(served, json=open_map, disable_additional_properties=True)
    assert json.loads(closed) == {"a": 1}


def test_structural_tags_hold_inside_free_text(served: ServedModel) -> None:
    tag = {
        "structures": [{"begin": "<", "schema": {"enum": ["x", "y"]}, "end": ">"}],
        "triggers": ["<"],
    }
    answer = ask(
        served,
        structured_outputs={"structural_tag": tag},
        logit_bias={str(ord("<")): 12.0},
        max_tokens=120,
    ).json()["choices"][0]["text"]
    inside = re.findall(r"<([^>]*)>", answer)
    assert inside
    assert set(inside) <= {'"x"', '"y"'}
    chat = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "structural_tag", **tag},
        "max_tokens": 10,
    }
    assert httpx.post(f"{served.url}/v1/chat/completions", json=chat, timeout=60).is_success


REFUSED = {
    "not a schema": ({"json": {"type": "strin"}}, "'strin' is no type"),
    "a keyword that is not supported": (
        {"json": {"type": "array", "uniqueItems": True}},
        "uniqueItems",
    ),
    "a schema nothing satisfies": (
        {"json": {"type": "integer", "minimum": 3, "maximum": 1}},
        "min",
    ),
    "only itself": ({"json": {"$ref": "#"}}, "satisf"),
    "duplicate keys": ({"json": {"type": "object", "minProperties": 3}}, "minProperties"),
    "an older draft": ({"json": {"divisibleBy": 3, "type": "integer"}}, "multipleOf"),
    "the library's options": ({"json": {"x-guidance": {"lenient": True}}}, "x-guidance"),
    "a pattern that looks around": (
        {"json": {"type": "string", "pattern": "(?=a)b"}},
        "look-around",
    ),
    "a class of another notation": ({"regex": "[a&&b]"}, "character class"),
    "a broken regex": ({"regex": "(a"}, "unclosed group"),
    "a broken grammar": ({"grammar": "start: ("}, "grammar"),
    "an empty choice": ({"choice": [""]}, "empty"),
    "two at once": ({"regex": "a", "json_object": True}, "exactly one"),
    "none": ({}, "exactly one"),
    "a tag without trigger": (
        {"structural_tag": {"structures": [{"begin": "a", "end": "b"}], "triggers": ["c"]}},
        "triggers",
    ),
}


@pytest.mark.parametrize(("asked", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_honoured_is_refused_with_the_reason(
    served: ServedModel, asked: dict[str, Any], reason: str
) -> None:
    answer = ask(served, structured_outputs=asked)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert reason in error["message"]
    assert error["param"].startswith("structured_outputs")
    assert "llguidance" not in error["message"]


@pytest.mark.parametrize(
    "schema",
    [{"type": "array", "uniqueItems": True}, {"divisibleBy": 3, "type": "integer"}],
    ids=["by the library", "before"],
)
def test_a_refusal_names_the_field_that_was_sent(served: ServedModel, schema: Any) -> None:
    wrapped = {"name": "x", "schema": schema}
    response = {"response_format": {"type": "json_schema", "json_schema": wrapped}}
    text_format = {"text": {"format": {"type": "json_schema", **wrapped}}}
    fields = {"response_format": "completions", "text.format": "responses"}
    for field, route in fields.items():
        body: dict[str, Any] = {"model": "tiny"}
        body |= (
            {"prompt": "x", **response} if route == "completions" else {"input": "x", **text_format}
        )
        error = httpx.post(f"{served.url}/v1/{route}", json=body, timeout=60).json()["error"]
        assert error["param"] == field, error
        assert error["message"].startswith(f"{field} cannot be honoured"), error


def test_older_names_point_to_todays(served: ServedModel) -> None:
    answer = ask(served, guided_json={"type": "object"})
    assert answer.status_code == 400
    assert "structured_outputs.json" in answer.json()["error"]["message"]


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def _chain(length: int) -> dict[str, Any]:
    links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": links | {f"d{length}": {"type": "integer"}}}


HOSTILE: dict[str, dict[str, Any]] = {
    "deep": {"json": _nested(500)},
    "long chain of references": {"json": _chain(4000)},
    "product of alternatives": {
        "json": {
            "allOf": [
                {"anyOf": [{"type": "object", "properties": {f"{k}{i}": {}}} for k in "ab"]}
                for i in range(24)
            ]
        }
    },
    "huge enum": {"json": {"enum": [f"value {i} {i * 7919}" for i in range(9000)]}},
    "many properties": {
        "json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(4000)}}
    },
    "large divisor": {"json": {"type": "integer", "multipleOf": 99_999_989}},
    "costly divisor": {"json": {"type": "integer", "multipleOf": 9_973, "minimum": 0}},
    "nested repetition": {"regex": "(a{1000}){1000}"},
    "nested repetition in a schema": {"json": {"type": "string", "pattern": "^(a{999}){999}$"}},
    "nested repetition in a grammar": {"grammar": "start: A\nA: B{1000}\nB: /a/{1000}"},
    "exponential automaton": {"regex": "(a|b)*a(a|b){400}"},
    "overlapping": {"regex": "(.*a.{40}.*b.{40}.*c.{40}){9}"},
    "ambiguous grammar": {"grammar": 'start: start start | "a" | start start start'},
    "a rule of everything": {
        "grammar": "start: "
        + " | ".join(f"r{i}" for i in range(1500))
        + "".join(f'\nr{i}: "x{i}" r{i * 7 % 1500}?' for i in range(1500))
    },
}  # fmt: skip


def test_hostile_grammars_cost_bounded_time_and_never_the_service(served: ServedModel) -> None:
    """Each is refused, or followed within its tokens; others are served meanwhile."""
    assert ask(served, structured_outputs={"regex": "a"}).status_code == 200  # the trial has begun

    def attack(asked: dict[str, Any]) -> tuple[int, float]:
        started_s = time.monotonic()
        answer = ask(served, structured_outputs=asked, max_tokens=20)
        return answer.status_code, time.monotonic() - started_s

    with ThreadPoolExecutor(4) as pool:
        attacks = {name: pool.submit(attack, asked) for name, asked in HOSTILE.items()}
        num_served = 0
        while not all(attempt.done() for attempt in attacks.values()):
            assert ask(served, max_tokens=5).status_code == 200
            num_served += 1
    outcomes = {name: attempt.result() for name, attempt in attacks.items()}
    print(outcomes)
    assert num_served > 0
    assert {status for status, _ in outcomes.values()} <= {200, 400, 500}, outcomes
    for name in ("deep", "product of alternatives", "large divisor", "nested repetition"):
        assert outcomes[name][0] == 400, outcomes
    assert text(served, choice=["still", "here"]) in ("still", "here")
    assert httpx.get(f"{served.url}/health", timeout=30).status_code == 200


def test_clients_that_leave_during_the_trial_leave_nothing_behind(served: ServedModel) -> None:
    for number in range(3):
        # Each its own, as a grammar that was tried before is known; and gone before any answer.
        slow = {"json": {"enum": [f"choice {number} {i}" for i in range(8000)]}}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{served.url}/v1/completions",
                json={"model": "tiny", "prompt": "x", "structured_outputs": slow},
                timeout=httpx.Timeout(30.0, read=0.001),
            )
    assert text(served, choice=["on", "off"]) in ("on", "off")

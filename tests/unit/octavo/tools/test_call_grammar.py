"""How many calls an answer may hold, and what: texts are tried against grammars, token by token."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from fake_engine import ByteTokenizer
from octavo.errors import InvalidRequestError
from octavo.grammar import Grammar, StructuredOutputs
from octavo.sampling_params import SamplingParams
from octavo.server.message_plan import MessagePlan
from octavo.server.protocol.tools import ToolsBody
from octavo.structured.translate import json_rule, translate
from octavo.tools.formats import CallFormat, MessageFormat, Tool
from tiny_engine import byte_grammars
from tiny_models import EOS_TOKEN_ID

ONE = {
    CallFormat.HERMES: '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
    CallFormat.LLAMA3_JSON: '{"name": "f", "parameters": {"a": 1}}',
    CallFormat.MISTRAL: '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]',
    CallFormat.PYTHONIC: "[f(a=1)]",
}
TWO = {
    CallFormat.HERMES: "\n".join([ONE[CallFormat.HERMES]] * 2),
    CallFormat.LLAMA3_JSON: "; ".join([ONE[CallFormat.LLAMA3_JSON]] * 2),
    CallFormat.MISTRAL: ONE[CallFormat.MISTRAL].replace(
        "}]", '}, {"name": "f", "arguments": {"a": 1}}]'
    ),
    CallFormat.PYTHONIC: "[f(a=1), f(a=1)]",
}
MARKS = {"<tool_call>": "<[259]>", "</tool_call>": "<[258]>"}
FREE_FORMS: Any = {"a": {"anyOf": [{"type": "integer"}, {"not": {"type": "null"}}]}}
"""A schema that no grammar can follow."""
_GRAMMARS = byte_grammars()


def plan_of(kind: CallFormat, **fields: Any) -> MessagePlan:
    """Of a request with these fields."""
    strict = fields.pop("strict", False)
    properties = fields.pop("properties", {"a": {"type": "integer"}})
    parameters = {"type": "object", "properties": properties, "required": ["a"]}
    function = {"name": "f", "parameters": parameters, "strict": strict}
    params = SamplingParams(structured_outputs=fields.pop("structured_outputs", None))
    body = ToolsBody.model_validate(
        {"tools": [{"type": "function", "function": function}], **fields}
    )
    return MessagePlan.of(body, params, MessageFormat(kind, None), [], None)


def may_answer(kind: CallFormat, text: str, **fields: Any) -> bool:
    """Whether a request of these fields may be answered with exactly this text."""
    asked = plan_of(kind, **fields).params.structured_outputs
    return asked is None or follows(translate(asked), text.encode())


def follows(grammar: Grammar, tokens: Sequence[int]) -> bool:
    follower = _GRAMMARS.follow(grammar, [EOS_TOKEN_ID], 0)
    while not follower.is_ready:
        pass
    assert follower.error is None, follower.error
    is_taken = all(follower.accept(token_id) for token_id in tokens)
    ends = is_taken and (follower.has_ended or follower.accept(EOS_TOKEN_ID))
    follower.release()
    return ends


NAMED: dict[str, Any] = {"tool_choice": {"type": "function", "function": {"name": "f"}}}
REQUIRED: dict[str, Any] = {"tool_choice": "required"}
SINGLE: dict[str, Any] = {"parallel_tool_calls": False}
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "named": (NAMED, False),
    "named, parallel asked for": (NAMED | {"parallel_tool_calls": True}, False),
    "required": (REQUIRED, True),
    "required, at most one": (REQUIRED | SINGLE, False),
    "auto": ({}, True),
    "auto, at most one": (SINGLE, False),
    "auto, strict": ({"strict": True}, True),
    "auto, strict, at most one": ({"strict": True} | SINGLE, False),
}


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("kind", CallFormat)
@pytest.mark.parametrize(("fields", "may_be_two"), CASES.values(), ids=CASES.keys())
def test_an_answer_holds_no_more_calls_than_were_asked_for(
    kind: CallFormat, fields: dict[str, Any], may_be_two: bool, size: int
) -> None:
    plan = plan_of(kind, **fields)
    end = plan.options(None).text_end
    assert (end is None) is may_be_two
    text, shown = TWO[kind], ""
    watch = None if end is None else end()
    for at in range(0, len(text), size):
        shown += text[at : at + size]
        if watch is not None and watch.is_reached(text[at : at + size]):
            break
    assert shown == text if may_be_two else len(shown) < len(ONE[kind]) + size
    parser = plan.parser()
    calls = [call for delta in (parser.feed(shown), parser.finish()) for call in delta.calls]
    told = [(call.index, call.name, json.loads(call.arguments)) for call in calls]
    assert told == [(0, "f", {"a": 1}), (1, "f", {"a": 1})][: 1 + may_be_two]


@pytest.mark.parametrize("kind", CallFormat)
@pytest.mark.parametrize(("fields", "may_be_two"), CASES.values(), ids=CASES.keys())
def test_grammars_let_calls_be(kind: CallFormat, fields: dict[str, Any], may_be_two: bool) -> None:
    assert may_answer(kind, ONE[kind], **fields)
    assert may_answer(kind, TWO[kind], **fields)
    wrong = ONE[kind].replace("1", '"any"')
    is_free = not fields.get("strict") and "tool_choice" not in fields
    assert may_answer(kind, wrong, **fields) is is_free


@pytest.mark.parametrize("num_calls", [0, 1, 2])
def test_marks_that_are_tokens_of_their_own_count_the_same(num_calls: int) -> None:
    tool = Tool("f", None, {"type": "object"})
    free = CallFormat.HERMES.free_grammar([tool], json_rule, MARKS.get)
    call = [259, *b'\n{"name": "f", "arguments": {}}\n', 258]
    assert follows(Grammar(free), [*b"So: ", *call * num_calls])
    assert not follows(Grammar(free), [*b"So: ", *call * num_calls, 259, *b"{}"])


@pytest.mark.parametrize("kind", CallFormat)
def test_at_most_one_call_asks_for_no_grammar(kind: CallFormat) -> None:
    """So any schema is taken, and all that is refused beside a grammar."""
    plan = plan_of(kind, **SINGLE, properties=FREE_FORMS)
    assert plan.params.structured_outputs is None


INTEGER = {"type": "integer"}
UNWRITABLE: dict[str, dict[str, Any]] = {
    "$ref": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}},
    "anyOf": {"anyOf": [{"required": ["a"]}], "properties": {"a": INTEGER}},
    "minProperties": {"minProperties": 1, "properties": {"a": INTEGER}},
    "'a' is required": {"required": ["a"]},
    "'a b' cannot be": {"properties": {"a b": INTEGER}},
    "'' cannot be": {"properties": {"": INTEGER}},
    "properties must be": {"properties": ["a"]},
    "required must be": {"properties": {"a": INTEGER}, "required": [["a"]]},
}


@pytest.mark.parametrize("fields", [NAMED, REQUIRED, {}], ids=["named", "required", "strict"])
@pytest.mark.parametrize(("words", "schema"), UNWRITABLE.items(), ids=UNWRITABLE.keys())
def test_a_schema_that_keywords_cannot_follow_is_refused(
    words: str, schema: dict[str, Any], fields: dict[str, Any]
) -> None:
    function = {"name": "f", "parameters": schema, "strict": not fields}
    body = ToolsBody.model_validate(
        {"tools": [{"type": "function", "function": function}], **fields}
    )
    written = MessageFormat(CallFormat.PYTHONIC, None)
    with pytest.raises(InvalidRequestError, match=re.escape(words)) as refused:
        MessagePlan.of(body, SamplingParams(), written, [], None)
    assert refused.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "free"])
@pytest.mark.parametrize("fields", [NAMED, REQUIRED, {}], ids=["named", "required", "auto"])
@pytest.mark.parametrize("type_", ["string", ["array", "null"]], ids=str)
@pytest.mark.parametrize("kind", CallFormat)
def test_a_schema_of_arguments_that_are_no_object_is_refused(
    kind: CallFormat, type_: Any, fields: dict[str, Any], strict: bool
) -> None:
    function = {"name": "f", "parameters": {"type": type_}, "strict": strict}
    body = ToolsBody.model_validate(
        {"tools": [{"type": "function", "function": function}], **fields}
    )
    words = rf"arguments are an object.* is {re.escape(json.dumps(type_))}; make it object"
    with pytest.raises(InvalidRequestError, match=words) as refused:
        MessagePlan.of(body, SamplingParams(), MessageFormat(kind, None), [], None)
    assert refused.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize("kind", CallFormat)
def test_arguments_that_may_be_an_object_are_followed(kind: CallFormat) -> None:
    tool = Tool("f", None, {"type": ["object", "null"]})
    assert (tool.fault, kind.why_not(tool)) == (None, None)


OBJECTS: dict[str, dict[str, Any]] = {
    "no type": {"properties": {"a": INTEGER}},
    "or null": {"type": ["object", "null"], "properties": {"a": INTEGER}},
    "anyOf": {"anyOf": [{"required": ["a"]}, {"type": "integer"}]},
    "$ref": {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": INTEGER}}}},
}


@pytest.mark.parametrize("kind", [kind for kind in CallFormat if kind is not CallFormat.PYTHONIC])
@pytest.mark.parametrize("parameters", OBJECTS.values(), ids=OBJECTS.keys())
def test_arguments_are_an_object_also_where_their_schema_names_no_type(
    parameters: dict[str, Any], kind: CallFormat
) -> None:
    function = {"name": "f", "parameters": parameters}
    body = ToolsBody.model_validate(
        {"tools": [{"type": "function", "function": function}], **REQUIRED}
    )
    plan = MessagePlan.of(body, SamplingParams(), MessageFormat(kind, None), [], None)
    assert plan.params.structured_outputs is not None
    grammar = translate(plan.params.structured_outputs)
    assert follows(grammar, ONE[kind].encode())
    for value in ("5", "null", '"text"'):
        assert not follows(grammar, ONE[kind].replace('{"a": 1}', value).encode())


def test_an_argument_that_is_required_twice_is_written_once() -> None:
    schema = {"type": "object", "properties": {"a": INTEGER}, "required": ["a", "a"]}
    lark = CallFormat.PYTHONIC.grammar([Tool("f", None, schema)], json_rule, MARKS.get)
    assert follows(Grammar(lark), b"[f(a=1)]")
    assert not follows(Grammar(lark), b"[f(a=1, a=1)]")


BROKEN = {
    "without an end": ('<tool_call>{"name": "f", "arguments": {"a": 1}', False),
    "no JSON": ('<tool_call>{"name": "f", "arguments": {"a": 1}, b}</tool_call>', True),
    "no call": ("<tool_call>f</tool_call> So: ", False),
}


@pytest.mark.parametrize(("text", "has_ended"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_whole_call_ends_an_answer_only_where_another_could_begin(
    text: str, has_ended: bool
) -> None:
    end = plan_of(CallFormat.HERMES, **SINGLE).options(None).text_end
    assert end is not None
    assert end().is_reached(text) is has_ended


def test_a_call_within_thoughts_is_none() -> None:
    body = ToolsBody.model_validate(
        {"tools": [{"type": "function", "function": {"name": "f"}}], **SINGLE}
    )
    thinks = MessageFormat(CallFormat.HERMES, ("<think>", "</think>"))
    plan = MessagePlan.of(body, SamplingParams(), thinks, list(b"<think>"), ByteTokenizer())
    end = plan.options(None).text_end
    assert end is not None
    watch = end()
    assert not watch.is_reached(f"{ONE[CallFormat.HERMES]} or not?</think>Well: ")
    assert watch.is_reached(ONE[CallFormat.HERMES])


def test_an_answer_beside_tools_follows_all_that_was_asked_of_it() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asked = StructuredOutputs(
        json=json.dumps(schema), disable_any_whitespace=True, disable_additional_properties=True
    )
    for text, is_allowed in (('{"a":1}', True), ('{"a": 1}', False), ('{"a":1,"b":2}', False)):
        assert may_answer(CallFormat.HERMES, text, structured_outputs=asked) is is_allowed
    assert may_answer(CallFormat.HERMES, ONE[CallFormat.HERMES], structured_outputs=asked, **SINGLE)


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_tools_that_are_allowed_may_be_called(mode: str) -> None:
    named = [{"type": "function", "function": {"name": name}} for name in "fgh"]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named[1:]}}
    body = ToolsBody.model_validate({"tools": named, "tool_choice": choice})
    assert [tool.name for tool in body.usable_tools()] == ["g", "h"]
    plan = MessagePlan.of(
        body, SamplingParams(), MessageFormat(CallFormat.LLAMA3_JSON, None), [], None
    )
    asked = plan.params.structured_outputs
    assert (asked is not None) == (mode == "required")
    if asked is not None:
        for name in "fgh":
            call = f'{{"name": "{name}", "parameters": {{}}}}'
            assert follows(translate(asked), call.encode()) == (name != "f")

"""How many calls an answer may hold: texts are tried against the grammars, token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

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


def may_answer(kind: CallFormat, text: str, **fields: Any) -> bool:
    """Whether a request of these fields may be answered with exactly this text."""
    strict = fields.pop("strict", False)
    properties = fields.pop("properties", {"a": {"type": "integer"}})
    parameters = {"type": "object", "properties": properties, "required": ["a"]}
    function = {"name": "f", "parameters": parameters, "strict": strict}
    params = SamplingParams(structured_outputs=fields.pop("structured_outputs", None))
    body = ToolsBody.model_validate(
        {"tools": [{"type": "function", "function": function}], **fields}
    )
    plan = MessagePlan.of(body, params, MessageFormat(kind, None), [], None)
    asked = plan.params.structured_outputs
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


@pytest.mark.parametrize("kind", CallFormat)
@pytest.mark.parametrize(("fields", "may_be_two"), CASES.values(), ids=CASES.keys())
def test_an_answer_holds_no_more_calls_than_were_asked_for(
    kind: CallFormat, fields: dict[str, Any], may_be_two: bool
) -> None:
    assert may_answer(kind, ONE[kind], **fields)
    assert may_answer(kind, TWO[kind], **fields) is may_be_two


@pytest.mark.parametrize("num_calls", [1, 2])
def test_marks_that_are_tokens_of_their_own_count_the_same(num_calls: int) -> None:
    tool = Tool("f", None, {"type": "object"})
    free = CallFormat.HERMES.free_grammar([tool], json_rule, MARKS.get, is_parallel=False)
    call = [259, *b'\n{"name": "f", "arguments": {}}\n', 258]
    assert follows(Grammar(free), [*b"So: ", *call * num_calls]) is (num_calls == 1)


@pytest.mark.parametrize("kind", CallFormat)
def test_at_most_one_call_leaves_text_and_arguments_free(kind: CallFormat) -> None:
    """As far as the model is free without it: any schema is taken, too."""
    fields = SINGLE | {"properties": FREE_FORMS}
    assert may_answer(kind, "It is 3 < 4, as <tools> say.", **fields)
    assert may_answer(kind, "", **fields)
    assert may_answer(kind, ONE[kind].replace("1", '"any"'), **fields)


def test_an_answer_beside_tools_follows_all_that_was_asked_of_it() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asked = StructuredOutputs(
        json=json.dumps(schema), disable_any_whitespace=True, disable_additional_properties=True
    )
    for text, is_allowed in (('{"a":1}', True), ('{"a": 1}', False), ('{"a":1,"b":2}', False)):
        assert may_answer(CallFormat.HERMES, text, structured_outputs=asked) is is_allowed
    assert may_answer(CallFormat.HERMES, ONE[CallFormat.HERMES], structured_outputs=asked, **SINGLE)

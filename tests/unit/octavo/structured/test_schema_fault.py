"""The place of a fault is told where it is one, and never another."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.grammar import StructuredOutputs
from octavo.structured.library import GrammarLibrary
from octavo.structured.schema_fault import MAX_QUESTIONS, find_fault
from octavo.structured.translate import translate
from octavo.structured.trial import GrammarTrials
from octavo.structured.trial_process import try_grammar
from tiny_engine import byte_vocabulary
from tiny_models import EOS_TOKEN_ID, VOCAB_SIZE

_LIBRARY = GrammarLibrary(byte_vocabulary(), VOCAB_SIZE, [EOS_TOKEN_ID])
UNIQUE: Any = {"type": "array", "uniqueItems": True}
EMPTY: Any = {"type": "string", "format": "date", "pattern": "a"}
"""What no text fits."""


class Library:
    """Asked as the trial process is."""

    def __init__(self, schema: object) -> None:
        self.num_questions = 0
        self.reason = self.reason_of(schema)

    def reason_of(self, schema: object) -> str:
        try:
            text = translate(StructuredOutputs(json=schema)).text  # type: ignore[arg-type]
        except InvalidRequestError:
            return "before any trial"
        return try_grammar(_LIBRARY, text, [EOS_TOKEN_ID])

    async def refuses(self, schema: object) -> bool:
        self.num_questions += 1
        return self.reason_of(schema) == self.reason


PLACES: dict[str, tuple[Any, str | None]] = {
    "at the top": (UNIQUE, "#/uniqueItems"),
    "a property": (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": UNIQUE}},
        "#/properties/b/uniqueItems",
    ),
    "keys that a pointer escapes": (
        {"properties": {"a/b": {"properties": {"c~d %": UNIQUE}}}},
        "#/properties/a~1b/properties/c~0d %/uniqueItems",
    ),
    "an item of a list": ({"anyOf": [{"type": "null"}, UNIQUE]}, "#/anyOf/1/uniqueItems"),
    "items": (
        {"items": {"additionalProperties": UNIQUE}},
        "#/items/additionalProperties/uniqueItems",
    ),
    "behind a reference": (
        {
            "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "#/$defs/y"}},
            "$defs": {
                "x": {"type": "null"}, "y": {"items": {"$ref": "#/$defs/z%20z"}}, "z z": UNIQUE,
            },
        },
        "#/$defs/z z/uniqueItems",
    ),
    "a reference to nowhere": (
        {"properties": {"a": {"$ref": "#/$defs/y"}}, "$defs": {"x": {}}},
        "#/properties/a/$ref",
    ),
    "a tree that holds itself": (
        {
            "$ref": "#/$defs/node",
            "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}, "tags": UNIQUE}}},
        },
        "#/$defs/node/properties/tags/uniqueItems",
    ),
    "two keywords together": (
        {"type": "object", "required": ["n"],
         "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 1}}},
        "#/properties/n",
    ),
    "two keywords of one reason": (
        {"properties": {"n": {"if": {}, "then": {}}}},
        "#/properties/n",
    ),
    "branches together": (
        {"properties": {"n": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}},
        "#/properties/n/oneOf",
    ),
    "patterns of keys together": (
        {"items": {"patternProperties": {"a": {"type": "integer"}, "b": {"type": "string"}}}},
        "#/items/patternProperties",
    ),
    "one that does no harm where it is": (
        {
            "type": "object",
            "properties": {"a": {"anyOf": [EMPTY, {"type": "null"}]}, "b": EMPTY},
            "required": ["b"],
        },
        "#/properties/b",
    ),
    "the same of several is one of them": (
        {"properties": {"a": UNIQUE, "b": {"type": "null"}, "c": UNIQUE}},
        "#/properties/c/uniqueItems",
    ),
    "the whole": ({"type": "integer", "minimum": 3, "maximum": 1}, None),
    "too many of one kind": (
        {"type": "object", "properties": {f"p{i}": {} for i in range(1000)}},
        "#/properties",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "place"), PLACES.values(), ids=PLACES.keys())
async def test_the_place_of_a_refusal_is_found(schema: Any, place: str | None) -> None:
    before = json.dumps(schema)
    library = Library(schema)
    assert library.reason
    assert await find_fault(schema, library.refuses) == place
    assert json.dumps(schema) == before


async def test_one_fault_among_a_thousand_takes_few_questions() -> None:
    properties: dict[str, Any] = {f"p{i}": {"type": "null"} for i in range(400)}
    properties["p123"] = UNIQUE
    library = Library({"type": "object", "properties": properties})
    found = await find_fault({"type": "object", "properties": properties}, library.refuses)
    assert found == "#/properties/p123/uniqueItems"
    assert library.num_questions < 40


async def test_a_search_that_never_learns_anything_ends() -> None:
    asked = []

    async def refuses(schema: object) -> bool:
        asked.append(1)
        return len(asked) % 3 == 0

    schema = {"properties": {f"p{i}": {"enum": [i], "type": "integer"} for i in range(1000)}}
    assert await find_fault(schema, refuses) is None
    assert len(asked) <= MAX_QUESTIONS


_LEAF = st.sampled_from([{"type": "integer"}, {"enum": ["a", 1]}, {"type": "string"}, EMPTY, {}])
_SCHEMAS = st.recursive(
    _LEAF,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3).map(
            lambda found: {"type": "object", "properties": found, "required": sorted(found)[:1]}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda found: {"anyOf": found}),
        inner.map(lambda found: {"type": "array", "items": found}),
    ),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(schema=_SCHEMAS)
async def test_what_is_told_is_at_fault_by_itself(schema: dict[str, Any]) -> None:
    """A schema, or the branches of one that no value fits together."""
    library = Library(schema)
    if not library.reason:
        return
    place = await find_fault(schema, library.refuses)
    if place is None:
        return
    holder: Any = schema
    *way, last = [key.replace("~1", "/") for key in place.split("/")[1:]]
    for key in way:
        holder = holder[int(key) if isinstance(holder, list) else key]
    fault = holder[int(last) if isinstance(holder, list) else last]
    assert Library(fault if isinstance(fault, dict) else {last: fault}).reason, place


async def test_a_verdict_has_its_place_and_is_remembered(tmp_path: Any) -> None:
    trials = GrammarTrials("", VOCAB_SIZE, [EOS_TOKEN_ID])

    async def ask(text: str) -> str:
        return try_grammar(_LIBRARY, text, [EOS_TOKEN_ID])

    trials._ask = ask  # type: ignore[method-assign]
    schema = {"properties": {"a": UNIQUE}}
    for value in (schema, json.dumps(schema)):
        asked = StructuredOutputs(json=value, asked_by="response_format")
        for _ in range(2):
            with pytest.raises(InvalidRequestError, match="at #/properties/a/uniqueItems: it"):
                await trials.check(translate(asked).text, asked)
    assert trials.num_tried == 1

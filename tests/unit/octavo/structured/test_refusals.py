"""What the library refuses is told in words of JSON Schema, and names the field it came from."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import InvalidRequestError
from octavo.grammar import StructuredOutputs
from octavo.structured.library import GrammarLibrary
from octavo.structured.translate import translate
from octavo.structured.trial_process import try_grammar
from tiny_engine import byte_vocabulary
from tiny_models import EOS_TOKEN_ID, VOCAB_SIZE

_LIBRARY = GrammarLibrary(byte_vocabulary(), VOCAB_SIZE, [EOS_TOKEN_ID])

SCHEMAS: dict[str, tuple[object, str]] = {
    "a type that is none": (
        {"type": "strin"},
        "'strin' is no type: use string, number, integer, boolean, object, array or null",
    ),
    "a keyword": (
        {"properties": {"a": {"if": {}, "then": {}}}, "required": ["a"]},
        "it uses 'if' and 'then', which no grammar can express: leave it out, and check answers "
        "for it yourself",
    ),
    "bounds": (
        {"type": "integer", "minimum": 3, "maximum": 1},
        "no value satisfies it: minimum (3) is greater than maximum (1)",
    ),
    "an empty enum": ({"enum": []}, "an enum or anyOf is empty: give at least one value"),
    "a pattern and a format": (
        {"type": "string", "format": "date", "pattern": "a"},
        "no text fits pattern, format and length",
    ),
    "a lost reference": ({"$ref": "#/$defs/x"}, "$ref '#/$defs/x' leads nowhere"),
    "a reference elsewhere": (
        {"$ref": "http://example.com/x"},
        "$ref 'http://example.com/x' leads out of the schema, and nothing is fetched: put what it "
        "means into $defs",
    ),
    "a oneOf": (
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        "two branches of oneOf may fit one value: use anyOf, or give each branch a property with "
        "a const of its own",
    ),
    "overlapping patterns of keys": (
        {"patternProperties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
        "the patternProperties /a/ and /b/ may fit one key: write them so that no key fits both",
    ),
    "a format": (
        {"type": "string", "format": "regex"},
        "format is 'regex': use date-time, time, date, duration, email, hostname, ipv4, ipv6, "
        "uuid or uri, or pattern",
    ),
    "a broken pattern": (
        {"type": "string", "pattern": "(a"},
        "the pattern (a cannot be read: unclosed group",
    ),
    "a pattern that looks like what is cut off": (
        {"type": "string", "pattern": "1 | ("},
        "the pattern 1 | ( cannot be read: unclosed group",
    ),
    "a boundary": (
        {"type": "string", "pattern": r"\bfoo"},
        r"the pattern /\bfoo/ looks around itself, as \b does: write it without",
    ),
    "unique items": (
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        "it uses 'uniqueItems', which a grammar can only keep where items are an enum of few "
        "values: leave it out, and check answers for it yourself",
    ),
    "bounds that are far": (
        {"type": "number", "minimum": -3.4e38, "maximum": 3.4e38},
        "its bounds are too far for a grammar to count: give bounds of up to 15 digits",
    ),
    "a divisor": ({"type": "integer", "multipleOf": 0}, "multipleOf must be above 0"),
    "too many properties": (
        {"type": "object", "properties": {f"p{i}": {} for i in range(1000)}},
        "at one place 4007 things may follow, and at most 2000 can be followed: use fewer "
        "properties or alternatives",
    ),
    "too many combinations": (
        {"allOf": [{"anyOf": [{"properties": {f"{k}{i}": {}}} for k in "ab"]} for i in range(24)]},
        "it stands for too many combinations: use fewer alternatives within allOf",
    ),
    "no end": ({"$ref": "#"}, "no text can satisfy it"),
    "a sentence that is given as it is": (
        {"type": "string", "minLength": -1},
        "expected positive integer for 'minLength', got -1",
    ),
}


@pytest.mark.parametrize(("schema", "sentence"), SCHEMAS.values(), ids=SCHEMAS.keys())
def test_a_schema_is_refused_in_one_sentence(schema: Any, sentence: str) -> None:
    text = translate(StructuredOutputs(json=schema)).text
    assert try_grammar(_LIBRARY, text, [EOS_TOKEN_ID]) == sentence


RECORD = {"type": "object", "additionalProperties": {"type": "number"}}


@pytest.mark.parametrize("names", [True, {}, {"type": "string", "description": "a word"}])
def test_names_that_any_key_satisfies_ask_for_nothing(names: Any) -> None:
    """As zod writes every record."""
    schema = {"type": "array", "items": RECORD | {"propertyNames": names}}
    text = translate(StructuredOutputs(json=schema)).text
    assert text == translate(StructuredOutputs(json={"type": "array", "items": RECORD})).text
    assert "propertyNames" in schema["items"], "the client's own schema is left as it is"


@pytest.mark.parametrize("names", [{"enum": [1]}, {"pattern": "a", "maxLength": 2}])
def test_names_that_some_key_does_not_satisfy_are_refused(names: Any) -> None:
    text = translate(StructuredOutputs(json=RECORD | {"propertyNames": names})).text
    assert "'propertyNames'" in try_grammar(_LIBRARY, text, [EOS_TOKEN_ID])


def test_a_format_of_another_kind_means_the_pattern_beside_it() -> None:
    """As zod writes its own kinds of text, such as nanoid."""
    pattern = {"type": "string", "pattern": "^[a-z0-9]{21}$"}
    text = translate(StructuredOutputs(json=pattern | {"format": "nanoid"})).text
    assert text == translate(StructuredOutputs(json=pattern)).text
    for schema in ({"type": "string", "format": "nanoid"}, pattern | {"format": "regex"}):
        text = translate(StructuredOutputs(json=schema)).text
        reason = try_grammar(_LIBRARY, text, [EOS_TOKEN_ID])
        assert reason.startswith(f"format is {schema['format']!r}")
    odd = translate(StructuredOutputs(json=pattern | {"format": ["nanoid"]})).text
    assert try_grammar(_LIBRARY, odd, [EOS_TOKEN_ID])


def test_a_property_may_be_called_as_a_keyword_is() -> None:
    schema = {"type": "object", "properties": {"propertyNames": {"type": "string"}}}
    assert "propertyNames" in translate(StructuredOutputs(json=schema)).text


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"regex": "[z-a]"}, "invalid character class range, the start must be <= the end"),
        ({"grammar": 'start: "a" b\nb: foo'}, 'line 2: unknown name: "foo"'),
        ({"grammar": 'foo: "a"'}, "no start rule found"),
    ],
    ids=["regex", "grammar", "grammar without a start"],
)
def test_a_grammar_is_refused_at_its_own_line(asked: dict[str, str], sentence: str) -> None:
    reason = try_grammar(_LIBRARY, translate(StructuredOutputs(**asked)).text, [EOS_TOKEN_ID])
    assert reason.endswith(sentence)
    assert "%" not in reason


@pytest.mark.parametrize("asked_by", ["response_format", "text.format", "tools[1].parameters"])
@pytest.mark.parametrize(
    "schema",
    [{"extends": {}}, {"pattern": "(a{999}){999}"}, {"multipleOf": 99_999}, 5],
    ids=["an older draft", "a pattern", "a divisor", "no schema"],
)
def test_what_is_refused_before_any_trial_names_the_field(asked_by: str, schema: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"cannot be honoured") as caught:
        translate(StructuredOutputs(json=schema, asked_by=asked_by))
    assert caught.value.param == asked_by
    assert str(caught.value).startswith(asked_by)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"json": {"extends": {}}}, "structured_outputs.json"),
        ({"json": "{"}, "structured_outputs.json"),
        ({"regex": "(a{999}){999}"}, "structured_outputs.regex"),
        ({"choice": [""]}, "structured_outputs.choice"),
        ({"grammar": " "}, "structured_outputs.grammar"),
        ({"structural_tag": {}}, "structured_outputs.structural_tag"),
        (
            {"json_object": True, "whitespace_pattern": "(a{999}){999}"},
            "structured_outputs.whitespace_pattern",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_kind_is_named_too_where_it_is_a_field(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        translate(StructuredOutputs(**asked))
    assert caught.value.param == param

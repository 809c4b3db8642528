"""What generators of schemas write is kept exactly, in the library's own keywords."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from octavo.errors import InvalidRequestError
from octavo.grammar import StructuredOutputs
from octavo.structured.library import GrammarLibrary
from octavo.structured.normal_form import normal_form
from octavo.structured.regex_size import split_look_ahead
from octavo.structured.translate import translate
from tiny_engine import byte_vocabulary
from tiny_models import EOS_TOKEN_ID, VOCAB_SIZE

_LIBRARY = GrammarLibrary(byte_vocabulary(), VOCAB_SIZE, [EOS_TOKEN_ID])


def admits(schema: Any, text: str) -> bool:
    matcher = _LIBRARY.compile(translate(StructuredOutputs(json=schema)).text)
    return all(matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting()


INTEGER = {"type": "integer"}
RECORD = {"type": "object", "additionalProperties": INTEGER}
TEXT = {"type": "string"}
DRAFT_7 = {"$schema": "http://json-schema.org/draft-07/schema#"}
TWO = {
    "A": {"type": "object", "properties": {"k": {"const": 1}, "a": INTEGER}, "required": ["k"]},
    "B": {"type": "object", "properties": {"k": {"const": 2}}},
}
BRANCHES = [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]

CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "a closed tuple of draft 7": (
        DRAFT_7 | {"type": "array", "items": [TEXT, INTEGER], "additionalItems": False},
        ["[]", '["a"]', '["a",1]'], ['["a",1,2]', "[1]"],
    ),
    "an open tuple of draft 7": (
        {"type": "array", "items": [TEXT], "additionalItems": {"type": "null"}, "minItems": 1},
        ['["a"]', '["a",null]'], ['["a",1]', "[]"],
    ),
    "additionalItems without a tuple": (
        {"type": "array", "items": INTEGER, "additionalItems": False}, ["[1,2]"], ['["a"]'],
    ),
    "an empty tuple of draft 7": (
        DRAFT_7 | {"type": "array", "items": [], "maxItems": 0}, ["[]"], ["[1]"],
    ),
    "prefixItems beside an older draft's name": (
        DRAFT_7 | {"type": "array", "prefixItems": [INTEGER], "items": False, "minItems": 1},
        ["[1]"], ["[]", "[1,2]"],
    ),
    "excluded bounds of draft 4": (
        INTEGER | {"minimum": 3, "exclusiveMinimum": True, "maximum": 5, "exclusiveMaximum": False},
        ["4", "5"], ["3", "6"],
    ),
    "nullable": (TEXT | {"nullable": True, "enum": ["a"]}, ['"a"', "null"], ['"b"']),
    "nullable by reference": (
        {"nullable": True, "$ref": "#/$defs/A", "$defs": {"A": INTEGER}}, ["1", "null"], ['"b"'],
    ),
    "not nullable": (INTEGER | {"nullable": False}, ["1"], ["null"]),
    "names that are listed": (
        RECORD | {"propertyNames": {"enum": ["a", "b/~ %"]}, "required": ["a"]},
        ['{"a":1}', '{"a":1,"b/~ %":2}'],
        ["{}", '{"a":1,"c":2}', '{"a":1,"a":1}', '{"a":1,"b/~ %":""}'],
    ),
    "names by reference": (
        RECORD | {"propertyNames": {"$ref": "#/$defs/N"}, "$defs": {"N": {"enum": ["a"]}}},
        ["{}", '{"a":1}'], ['{"b":1}'],
    ),
    "names of a union": (
        RECORD | {"propertyNames": {"anyOf": [{"const": "a"}, {"const": "b"}]}},
        ['{"a":1,"b":2}'], ['{"c":1}'],
    ),
    "names by pattern": (
        RECORD | {"propertyNames": TEXT | {"pattern": "^a+$"}}, ['{"aa":1}'], ['{"b":1}'],
    ),
    "names by length": (
        RECORD | {"propertyNames": {"maxLength": 2}}, ['{"ä€":1}', '{"":1}'], ['{"abc":1}'],
    ),
    "names by format": (
        RECORD | {"propertyNames": {"format": "date"}}, ['{"2024-02-29":1}'], ['{"2023-02-29":1}'],
    ),
    "no names": (RECORD | {"propertyNames": False}, ["{}"], ['{"a":1}']),
    "a set of few": (
        {"type": "array", "items": {"enum": ["a", 1, True]}, "uniqueItems": True},
        ["[]", '[true,"a",1]', "[1]"], ['["a","a"]', "[2]"],
    ),
    "a set with bounds": (
        {"type": "array", "items": {"enum": list("abcdefghi")}, "uniqueItems": True,
         "minItems": 1, "maxItems": 2},
        ['["i","a"]'], ["[]", '["a","a"]', '["a","b","c"]'],
    ),
    "a set of one": (
        {"type": "array", "items": TEXT, "uniqueItems": True, "maxItems": 1},
        ['["x"]'], ['["x","y"]'],
    ),
    "branches told apart by numbers": (
        {"oneOf": BRANCHES, "$defs": TWO}, ['{"k":1,"a":2}', "{}", '{"k":2}'], ['{"k":3}'],
    ),
    "a discriminator": (
        {"discriminator": {"propertyName": "k"}, "oneOf": BRANCHES, "$defs": TWO},
        ['{"k":1}', '{"k":2}'], ["{}", '{"k":3}'],
    ),
    "branches of numbers that exclude each other": (
        {"oneOf": [INTEGER, {"const": 1.5}]}, ["1", "1.5"], ["2.5"],
    ),
    "unevaluated properties": (
        {"allOf": [{"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
                   {"type": "object", "properties": {"b": INTEGER}}],
         "unevaluatedProperties": False},
        ['{"a":1}', '{"a":1,"b":2}'], ['{"a":1,"c":2}', '{"b":1}'],
    ),
    "names of properties that nothing evaluates": (
        {"type": "object", "propertyNames": {"enum": ["a"]}, "unevaluatedProperties": False},
        ["{}"], ['{"a":1}'],
    ),
    "never": (
        {"type": "object", "properties": {"a": {"not": {}}, "b": INTEGER}},
        ['{"b":1}', "{}"], ['{"a":1,"b":1}'],
    ),
    "look-ahead": (
        TEXT | {"pattern": r"^(?=.*\d)(?=.*[a-z]).{3,5}$"}, ['"a1b"', '"12a"'], ['"abc"', '"a1"'],
    ),
    "pydantic's decimals": (
        TEXT | {"pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
        ['"1."', '"+.5"', '"0"'], ['""', '"-"', '"."', '"a"'],
    ),
    "zod's duration": (
        TEXT | {"format": "duration",
                "pattern": r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?"
                r"(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"},
        ['"P1DT2H"', '"P3W"'], ['"P"', '"P1W2D"'],
    ),
    "date": (
        {"format": "date"}, ['"2024-02-29"', '"2000-02-29"', "5"],
        ['"2023-02-29"', '"1900-02-29"', '"0000-01-01"', '"2024-04-31"'],
    ),
    "date-time": (
        TEXT | {"format": "date-time"}, ['"2024-02-29T23:59:59.5+01:00"', '"0001-01-01t00:00:00z"'],
        ['"2024-02-29T23:59:60Z"', '"2024-02-29T23:59:59"', '"2023-02-29T00:00:00Z"'],
    ),
    "ipv6": (
        TEXT | {"format": "ipv6"},
        ['"::"', '"1::"', '"::ffff:1.2.3.4"', '"1:2:3:4:5:6:7:8"'], ['"1:2"', '"1::2::3"'],
    ),
    "any address": (TEXT | {"format": "ipvanyaddress"}, ['"1.2.3.4"', '"::1"'], ['"1.2.3.256"']),
    "an interface": (
        TEXT | {"format": "ipvanyinterface"}, ['"1.2.3.4/32"', '"::1/128"', '"::"'],
        ['"1.2.3.4/33"', '"::1/129"'],
    ),
    "uuid4": (TEXT | {"format": "uuid4"}, [f'"{uuid.UUID(int=5, version=4)}"'],
              [f'"{uuid.UUID(int=5, version=1)}"']),
    "base64": (TEXT | {"format": "base64"}, ['""', '"QQ=="', '"+/AA"'], ['"QQ"', '"_-AA"']),
    "encoded bytes": (TEXT | {"contentEncoding": "base64"}, ['"QUI="'], ['"Q"']),
    "decimal": (TEXT | {"format": "decimal"}, ['"-1.50"', '"1E+3"'], ['""', '"NaN"']),
    "any text": (TEXT | {"format": "password", "minLength": 1}, ['"x y"'], ['""']),
    "int32": (INTEGER | {"format": "int32"}, ["-2147483648"], ["2147483648"]),
    "int64": (INTEGER | {"format": "int64"}, ["9223372036854775807"], ["9223372036854775808"]),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "right", "wrong"), CASES.values(), ids=CASES.keys())
def test_what_is_valid_is_admitted_and_nothing_else(
    schema: Any, right: list[str], wrong: list[str]
) -> None:
    before = json.dumps(schema)
    assert [text for text in right if not admits(schema, text)] == []
    assert [text for text in wrong if admits(schema, text)] == []
    assert json.dumps(schema) == before, "the client's own schema is left as it is"


NOT_KEPT: dict[str, Any] = {
    "a younger keyword beside an older draft's name": DRAFT_7 | {"dependentRequired": {"a": ["b"]}},
    "branches that both fit": {"oneOf": [{"const": 1}, {"const": 1.0}]},
    "a type and one of its values": {"oneOf": [INTEGER, {"const": 1}]},
    "a type and one of its values in another spelling": {"oneOf": [INTEGER, {"enum": ["a", 1.0]}]},
    "branches of which neither is an object": {
        "oneOf": [{"properties": {"k": {"const": k}}, "required": ["k"]} for k in (1, 2)]
    },
    "a set of many": {"type": "array", "items": {"enum": list(range(9))}, "uniqueItems": True},
    "a set of numbers that are written in two ways": {
        "type": "array", "items": {"enum": [1.5, 2]}, "uniqueItems": True,
    },
    "names that are no texts": RECORD | {"propertyNames": {"enum": [1, 2]}},
    "a network": TEXT | {"format": "ipvanynetwork"},
    "never at the top": {"not": {}},
    "additionalItems beside prefixItems": {"prefixItems": [INTEGER], "additionalItems": False},
    "a true bound without a bound": INTEGER | {"exclusiveMinimum": True},
}  # fmt: skip


@pytest.mark.parametrize("schema", NOT_KEPT.values(), ids=NOT_KEPT.keys())
def test_what_cannot_be_kept_is_still_refused(schema: Any) -> None:
    with pytest.raises((ValueError, InvalidRequestError)):
        admits(schema, "")


def test_references_of_parts_with_names_of_their_own_are_left_alone() -> None:
    names = {"propertyNames": {"$ref": "#/$defs/N"}}
    inner = {"$id": "http://example.com/x", "$defs": {"N": {"enum": ["b"]}}, **RECORD, **names}
    schema = {"$defs": {"N": {"enum": ["a"]}}, "properties": {"x": inner}}
    assert normal_form(schema) == schema


def test_what_is_written_out_stays_small() -> None:
    record = {"type": "object", "propertyNames": {"$ref": "#/$defs/N"}}
    names = {"enum": [f"a{number}" for number in range(3_000)]}
    schema = {"$defs": {"N": names}, "properties": {f"p{i}": dict(record) for i in range(300)}}
    assert len(json.dumps(normal_form(schema))) < 10 * len(json.dumps(schema))


@pytest.mark.parametrize(
    "odd",
    [
        {"oneOf": [{"type": [{}]}, {}]}, {"oneOf": [{"required": [{}]}, {"enum": 3}]},
        {"properties": 3, "unevaluatedProperties": False},
        {"allOf": 3, "unevaluatedProperties": False},
        {"properties": 3, "propertyNames": {"enum": ["a"]}},
        {"type": "array", "uniqueItems": True, "items": {"enum": [1]}, "minItems": "x"},
        {"propertyNames": {"enum": ["a"], "type": [[]]}},
        {"format": "date", "allOf": 3, "pattern": 3},
        {"discriminator": 3, "anyOf": []}, {"nullable": "x", "not": 3, "items": [3], "$ref": 3},
    ],
)  # fmt: skip
def test_what_is_no_schema_is_left_to_be_refused(odd: Any) -> None:
    normal_form(odd)


@pytest.mark.parametrize("pattern", ["^(?=a)b|c", "^(?=a)?b", "(?=a)b", "^(?!a)b", "^(?=a", "^a$"])
def test_a_pattern_that_says_more_is_not_split(pattern: str) -> None:
    assert split_look_ahead(pattern) is None

"""Which JSON schemas can be honoured: bounds on their size, and what the library would only half
honour.

The grammar library refuses most of what it does not know, with a reason. Here is what it would let
pass: keywords of older drafts that it takes for annotations, options of its own that would loosen
the check, and the one keyword that duplicate keys could get around.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from octavo.grammar import cannot_be_honoured
from octavo.structured.regex_size import check_regex

MAX_SCHEMA_CHARS = 262_144
MAX_DEPTH = 64
"""Levels of objects and lists. Schemas that people write stay below twenty."""
MAX_REFERENCES = 1_000
MAX_MULTIPLE_OF = 10_000
"""Divisibility by n takes an automaton of about n states."""

_OTHER_DRAFTS = {
    "divisibleBy": "use multipleOf",
    "disallow": "it has no equivalent that can be honoured",
    "extends": "use allOf",
    "$recursiveAnchor": "use $ref",
    "x-guidance": "it is set by the server",
}
_BOUNDS = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
SUBSCHEMAS = ("items", "additionalProperties", "additionalItems")
LISTS_OF_SUBSCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
MAPS_OF_SUBSCHEMAS = ("properties", "patternProperties", "$defs", "definitions")


def check_schema(schema: object, param: str) -> None:
    """Raise InvalidRequestError, with the reason and the place, for what cannot be honoured.

    ``param``: the request's field that holds it. What passes may still be refused by the library,
    which is asked when the grammar is tried.
    """
    if not isinstance(schema, (Mapping, bool)):
        raise cannot_be_honoured(param, "a schema must be an object")
    try:
        size = len(json.dumps(schema))
    except RecursionError:
        size, depth = 0, MAX_DEPTH + 1
    else:
        depth = _depth(schema)
    if size > MAX_SCHEMA_CHARS:
        raise cannot_be_honoured(
            param, f"it has {size} characters; the limit is {MAX_SCHEMA_CHARS}"
        )
    if depth > MAX_DEPTH:
        raise cannot_be_honoured(
            param, f"it is nested more than {MAX_DEPTH} levels deep; move inner schemas to $defs"
        )
    num_references = 0
    for path, part in subschemas(schema, "#"):
        num_references += "$ref" in part
        _check_keywords(path, part, param)
    if num_references > MAX_REFERENCES:
        raise cannot_be_honoured(
            param, f"it has {num_references} $ref; at most {MAX_REFERENCES} are allowed"
        )


def pointer(path: str, *keys: str) -> str:
    """A JSON pointer (RFC 6901) that goes on from another."""
    escaped = (key.replace("~", "~0").replace("/", "~1") for key in keys)
    return "/".join((path, *escaped))


def closed(schema: object) -> object:
    """The schema with ``additionalProperties: false`` where an object lists its properties."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    inner: dict[str, Any] = {
        key: value if key in ("enum", "const", "default", "examples") else closed(value)
        for key, value in schema.items()
    }
    if isinstance(inner.get("properties"), Mapping):
        inner.setdefault("additionalProperties", False)
    return inner


def _check_keywords(path: str, schema: Mapping[str, Any], param: str) -> None:
    for name in _OTHER_DRAFTS.keys() & schema.keys():
        reason = f"{name!r} is not of draft 2020-12: {_OTHER_DRAFTS[name]}"
        raise cannot_be_honoured(param, reason, path)
    if "prefixItems" in schema and "additionalItems" in schema:
        reason = "'additionalItems' stands beside prefixItems: write items for the rest"
        raise cannot_be_honoured(param, reason, path)
    for name, bound in _BOUNDS.items():
        if schema.get(name) is True and not isinstance(schema.get(bound), (int, float)):
            reason = f"{name!r} is true, as in draft 4, and there is no {bound} that it speaks of"
            raise cannot_be_honoured(param, reason, path)
    if isinstance(schema.get("required"), bool):
        reason = "'required' is true or false, as in draft 3: list names in the object's required"
        raise cannot_be_honoured(param, reason, path)
    pattern = schema.get("pattern")
    patterns = [pattern] if isinstance(pattern, str) else []
    by_pattern = schema.get("patternProperties")
    if isinstance(by_pattern, Mapping):
        patterns += by_pattern
    for each in patterns:
        check_regex(each, param, path)
    _check_least_properties(path, schema, param)
    divisor = schema.get("multipleOf")
    if isinstance(divisor, (int, float)) and divisor > MAX_MULTIPLE_OF:
        reason = f"multipleOf is {divisor}; at most {MAX_MULTIPLE_OF} works"
        raise cannot_be_honoured(param, reason, path)


def _check_least_properties(path: str, schema: Mapping[str, Any], param: str) -> None:
    """A grammar cannot keep a model from writing one free key twice, which is one property: only
    one more than the required ones is sure to be reached."""
    least, required = schema.get("minProperties"), schema.get("required")
    if not isinstance(least, int):
        return
    num_required = len(set(required)) if isinstance(required, list) else 0
    if least > num_required + 1:
        raise cannot_be_honoured(
            param,
            f"minProperties is {least} and {num_required} properties are required: with more than "
            "one free key the same key could be written twice; name them in required",
            path,
        )


def subschemas(schema: object, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema in it, by place. What is data (enum, const, default) is not looked into."""
    if not isinstance(schema, Mapping):
        return
    yield path, schema
    for name in SUBSCHEMAS:
        yield from subschemas(schema.get(name), pointer(path, name))
    for name in LISTS_OF_SUBSCHEMAS:
        parts = schema.get(name)
        for index, part in enumerate(parts if isinstance(parts, list) else ()):
            yield from subschemas(part, pointer(path, name, str(index)))
    for name in MAPS_OF_SUBSCHEMAS:
        named = schema.get(name)
        for key, part in list(named.items()) if isinstance(named, Mapping) else ():
            yield from subschemas(part, pointer(path, name, key))


def _depth(value: object) -> int:
    """Levels of objects and lists, without recursion."""
    depth, level = 0, [value]
    while level := [inner for outer in level for inner in _children(outer)]:
        depth += 1
    return depth


def _children(value: object) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else []

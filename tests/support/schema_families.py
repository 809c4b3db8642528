"""Three hundred JSON schemas of kinds that people write, of every keyword that is honoured."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(required: int = 99, **properties: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties)[:required],
        "additionalProperties": False,
    }


def _text(longest: int = 6) -> Schema:
    return {"type": "string", "maxLength": longest}


def _leaves() -> list[Schema]:
    numbers: list[Schema] = [
        {"type": "integer", "minimum": low, "maximum": low + span}
        for low in (-1000, -7, 0, 1, 18)
        for span in (0, 5, 99)
    ]
    numbers += [
        {"type": "integer", "multipleOf": factor, "minimum": 0, "maximum": 900}
        for factor in (2, 3, 5, 7, 12, 25)
    ]
    numbers += [
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "number", "minimum": -90, "maximum": 90},
        {"type": "number", "minimum": 0.5, "maximum": 0.75},
        {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 9},
    ]
    texts: list[Schema] = [
        {"type": "string", "minLength": low, "maxLength": low + span}
        for low in (0, 1, 5)
        for span in (0, 2, 8)
    ]
    patterns = [
        "^[A-Z]{2}[0-9]{4}$", "^#[0-9a-f]{6}$", "^(red|green|blue)$", r"^\d{3}-\d{2}$",
        "^v[0-9]\\.[0-9]\\.[0-9]$", "^[a-z][a-z0-9_]{0,7}$", "^\\+?[0-9]{7,9}$", "^[^@]{1,3}@x$",
    ]  # fmt: skip
    texts += [{"type": "string", "pattern": pattern} for pattern in patterns]
    texts += [{"type": "string", "pattern": "^[ab]+$", "minLength": 2, "maxLength": 5}]
    formats = ["date", "time", "date-time", "ipv4", "uuid"]
    texts += [{"type": "string", "format": name} for name in formats]
    others: list[Schema] = [
        {"type": "boolean"},
        {"type": "null"},
        {"const": "fixed"},
        {"const": {"a": [1, None]}},
        {"enum": ["low", "medium", "high"]},
        {"enum": [1, 2.5, None, True, "x", [1], {"k": "v"}]},
        {"type": ["string", "null"], "maxLength": 4},
        {"type": ["integer", "boolean"], "minimum": 0, "maximum": 9},
        {"title": "Annotated", "description": "d", "default": 1, "examples": [2],
         "deprecated": True, "readOnly": True, "$comment": "c", "type": "integer",
         "minimum": 0, "maximum": 9},
    ]  # fmt: skip
    return numbers + texts + others


def _arrays(leaf: Schema) -> list[Schema]:
    return [
        {"type": "array", "items": leaf, "maxItems": 2},
        {"type": "array", "prefixItems": [leaf, {"type": "boolean"}], "items": False},
        {"type": "array", "items": leaf, "minItems": 1, "maxItems": 3},
    ]


def _objects(leaf: Schema) -> list[Schema]:
    return [
        _object(id={"type": "integer", "minimum": 1, "maximum": 99}, value=leaf),
        _object(1, name=_text(), value=leaf),
        {**_object(value=leaf), "additionalProperties": True, "maxProperties": 1},
        {"type": "object", "additionalProperties": leaf, "maxProperties": 2},
        {"type": "object", "patternProperties": {"^x_[a-z]{1,3}$": leaf},
         "additionalProperties": False, "maxProperties": 1},
        {"$ref": "#/$defs/pair", "$defs": {"pair": _object(a=leaf, b=leaf)}},
        {"anyOf": [_object(kind={"const": "a"}, value=leaf), _object(kind={"const": "b"})]},
        {"oneOf": [_object(kind={"const": "a"}, value=leaf), _object(kind={"const": "b"})]},
        {"allOf": [{"type": "object", "properties": {"a": leaf}, "required": ["a"]},
                   {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}],
         "maxProperties": 2},
    ]  # fmt: skip


def _recursive() -> list[Schema]:
    return [
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": _object(
                    1,
                    name=_text(length),
                    children={"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
                )
            },
        }
        for length in range(1, 6)
    ]


def schemas() -> list[Schema]:
    """Exactly three hundred, always the same."""
    leaves = _leaves()
    made = [*leaves, *_recursive()]
    for offset in range(6):
        for number, leaf in enumerate(leaves):
            shapes = [*_arrays(leaf), *_objects(leaf)]
            made.append(shapes[(number + 5 * offset) % len(shapes)])
    distinct = list({repr(schema): schema for schema in made}.values())
    assert len(distinct) >= 300, len(distinct)
    return distinct[:300]

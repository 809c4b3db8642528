"""What a schema tells of the values that it allows: which it lists, and what keeps them apart from
those of another.

Knows one document and follows references within it; rewrites nothing. Equal are values that JSON
Schema takes for equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

ANNOTATIONS = frozenset(
    str.split("title description examples default $comment deprecated readOnly writeOnly")
)
MAX_LISTED = 10_000
"""Values of a union."""
_MAX_HOPS = 16
"""From one reference to the next."""
_OF_ONE_VALUE: dict[str, list[Any]] = {"boolean": [False, True], "null": [None]}
_KINDS = ("string", "boolean", "null", "number", "integer", "object", "array")
_Identity = tuple[str, object]


class SchemaValues:
    """Of the parts of one document, each looked at once.

    ``root``: empty where references may be relative to other parts; then they lead nowhere.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._listed: dict[int, tuple[object, list[Any] | None]] = {}
        self._facts: dict[int, tuple[object, Facts]] = {}

    def target(self, schema: object) -> Mapping[str, Any] | None:
        """The schema that references lead to; None where they say more, or lead nowhere."""
        for _ in range(_MAX_HOPS):
            if not isinstance(schema, Mapping) or "$ref" not in schema:
                break
            if schema.keys() - {"$ref", *ANNOTATIONS}:
                return None
            schema = self._at(str(schema["$ref"]))
        return schema if isinstance(schema, Mapping) and "$ref" not in schema else None

    def listed(self, schema: object) -> list[Any] | None:
        """All values that it allows, once each, where it lists them."""
        target = self.target(schema)
        if target is None:
            return None
        if id(target) not in self._listed:
            self._listed[id(target)] = target, self._list(target)
        return self._listed[id(target)][1]

    def facts(self, schema: object) -> Facts:
        """What may keep it apart from others."""
        target = self.target(schema) or {}
        if id(target) not in self._facts:
            self._facts[id(target)] = target, self._find_facts(target)
        return self._facts[id(target)][1]

    def _at(self, reference: str) -> object:
        start, *keys = reference.split("/")
        place: object = self._root if start == "#" else None
        for key in keys:
            key = unquote(key).replace("~1", "/").replace("~0", "~")
            place = place.get(key) if isinstance(place, Mapping) else None
        return place

    def _list(self, schema: Mapping[str, Any]) -> list[Any] | None:
        branches = schema.get("anyOf")
        if schema.keys() - ANNOTATIONS != {"anyOf"} or not isinstance(branches, list):
            return _own_list(schema)
        together: list[Any] = []
        for branch in branches:
            listed = _own_list(self.target(branch) or {})
            if listed is None or len(together) > MAX_LISTED:
                return None
            together += listed
        return _once(together)

    def _find_facts(self, schema: Mapping[str, Any]) -> Facts:
        values = self._identities(schema)
        marks = {
            name: listed
            for name, inner in as_map(schema.get("properties")).items()
            if (listed := self._identities(inner)) is not None
        }
        required = schema.get("required")
        names = required if isinstance(required, list) else []
        return Facts(
            kinds=_kinds(schema) if values is None else set(map(_kind, self.listed(schema) or ())),
            values=values,
            marks=marks,
            required={name for name in names if isinstance(name, str)},
        )

    def _identities(self, schema: object) -> set[_Identity] | None:
        """Of values that are no compounds, as far as they can be told apart."""
        listed = self.listed(schema)
        if listed is None or any(_kind(value) in ("array", "object") for value in listed):
            return None
        return {_identity(value) for value in listed}


@dataclass(frozen=True, slots=True)
class Facts:
    """Of a branch, what may keep it apart from others."""

    kinds: set[str]
    values: set[_Identity] | None
    marks: dict[str, set[_Identity]]
    """Of properties that have few values."""
    required: set[str]

    def excludes(self, other: Facts) -> bool:
        """Whether no value fits both."""
        if not self.kinds & other.kinds:
            return True
        if self.values is not None and other.values is not None:
            return self.values.isdisjoint(other.values)
        if self.kinds != {"object"} and other.kinds != {"object"}:
            return False
        shared = self.marks.keys() & other.marks.keys() & (self.required | other.required)
        return any(self.marks[name].isdisjoint(other.marks[name]) for name in shared)


def says_nothing(schema: object, kind: str | None = None) -> bool:
    """Whether anything satisfies it, or any value of one kind."""
    if not isinstance(schema, Mapping):
        return schema is True
    allowed = {*ANNOTATIONS, "type"} if schema.get("type", ...) == kind else ANNOTATIONS
    return schema.keys() <= allowed


def as_map(value: object) -> Mapping[str, Any]:
    """Properties, which a client may have written as anything."""
    return value if isinstance(value, Mapping) else {}


def is_compound(value: object) -> bool:
    """Whether it may be written in several ways, as numbers with a point are too."""
    return isinstance(value, (float, list, dict))


def _own_list(schema: Mapping[str, Any]) -> list[Any] | None:
    said = schema.keys() - ANNOTATIONS
    if not said <= {"enum", "const", "type"}:
        return None
    if "const" in said and "enum" not in said:
        values: list[Any] = [schema["const"]]
    elif isinstance(schema.get("enum"), list) and "const" not in said:
        values = schema["enum"]
    else:
        return _OF_ONE_VALUE.get(str(schema.get("type"))) if said == {"type"} else None
    kinds = _kinds(schema)
    return _once([value for value in values if _kind(value) in kinds])


def _once(values: Sequence[Any]) -> list[Any]:
    found: dict[_Identity, Any] = {}
    for value in values:
        found.setdefault(_identity(value), value)
    return list(found.values())


def _kind(value: object) -> str:
    """The narrowest: a number without a fraction is an integer, however it is written."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float) and value.is_integer():
        return "integer"
    for kind, types in (("string", str), ("integer", int), ("number", float), ("array", list)):
        if isinstance(value, types):
            return kind
    return "null" if value is None else "object"


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """With the integers among numbers."""
    asked = schema.get("type", list(_KINDS))
    found = {kind for kind in (asked if isinstance(asked, list) else [asked]) if kind in _KINDS}
    return found | {"integer"} if "number" in found else found


def _identity(value: object) -> _Identity:
    """Equal for values that JSON Schema takes for equal, if they are no compounds."""
    kind = _kind(value)
    if kind in ("array", "object"):
        return kind, repr(value)
    return "number" if kind == "integer" else kind, value

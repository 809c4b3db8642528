"""Schemas as generators write them, in the keywords that the library keeps.

Knows OpenAPI 3.0, and what pydantic, zod and others write of their types. Each rule rewrites what
one keyword of one schema says, exactly, or leaves it, to be refused by name. Tuples and bounds of
older drafts the library reads itself.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from octavo.structured.formats import BASE64, DEFINED_FORMATS, FREE_FORMATS, MEANINGS
from octavo.structured.json_schema import pointer, subschemas
from octavo.structured.regex_size import split_look_ahead

MAX_ARRANGEMENTS = 400
"""Of the values of a list of unique items: five values can be arranged in 326 ways."""
MAX_WRITTEN = 10_000
"""Names and values that are written out in place of keywords, in a whole schema."""
MAX_COMPARED = 5_000
"""Pairs of branches of oneOf that are held against each other, in a whole schema."""
_MAX_HOPS = 16
"""From one reference to the next."""
_ANNOTATIONS = frozenset(
    str.split("title description examples default $comment deprecated readOnly writeOnly")
)
_OF_ZOD = {
    "duration": r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?"
    r"(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"
}
"""Patterns that look around themselves, and allow all that the format beside them does."""

_Schema = dict[str, Any]


@dataclass(slots=True)
class _Document:
    """What a schema is a part of, and what has been found out about its parts."""

    root: _Schema
    """Empty where references may be relative to other parts."""
    num_written: int = 0
    num_compared: int = 0
    listed: dict[int, tuple[object, list[Any] | None]] = field(default_factory=dict)
    facts: dict[int, tuple[object, _Facts]] = field(default_factory=dict)

    def may_write(self, count: int) -> bool:
        """Whether there is room for so many names or values more, which is then taken."""
        has_room = self.num_written + count <= MAX_WRITTEN
        self.num_written += count if has_room else 0
        return has_room


def normal_form(schema: object) -> object:
    """The same in words of draft 2020-12. ``schema`` has been checked, and is left as it is."""
    plain = copy.deepcopy(schema)
    if not isinstance(plain, dict):
        return plain
    is_one = all("$id" not in part for path, part in subschemas(plain, "#") if path != "#")
    document = _Document(plain if is_one else {})
    for path, part in subschemas(plain, "#"):
        assert isinstance(part, dict), "a copy of JSON"
        for rule in _RULES:
            rule(part, path, document)
    return plain


def _dialect(schema: _Schema, path: str, document: _Document) -> None:
    """The library would ignore keywords that are younger than the draft it is told of."""
    schema.pop("$schema", None)


def _nullable(schema: _Schema, path: str, document: _Document) -> None:
    """OpenAPI 3.0: null as well, as its generators mean it beside an enum and a $ref too."""
    if not isinstance(schema.get("nullable"), bool):
        return
    if schema.pop("nullable"):
        inner = {key: schema.pop(key) for key in list(schema) if key not in _OF_THE_PLACE}
        schema["anyOf"] = [inner, {"type": "null"}]


_OF_THE_PLACE = ("$id", "$defs", "definitions")


def _never(schema: _Schema, path: str, document: _Document) -> None:
    """What is not anything is nothing: zod's never and undefined."""
    if "not" in schema and _says_nothing(schema["not"]):
        schema.clear()
        schema["enum"] = []


def _property_names(schema: _Schema, path: str, document: _Document) -> None:
    """Names that are listed are properties; a pattern of names is one of patternProperties."""
    names = schema.get("propertyNames")
    if names is None or _says_nothing(names, "string"):
        schema.pop("propertyNames", None)
        return
    if "patternProperties" in schema or not document.root:
        return
    listed = [] if names is False else _listed(names, document)
    if listed is not None:
        if document.may_write(len(listed)) and all(isinstance(name, str) for name in listed):
            _name_properties(schema, path, listed)
    elif (pattern := _pattern_of(names)) is not None and "properties" not in schema:
        schema["patternProperties"] = {pattern: schema.get("additionalProperties", True)}
        schema["additionalProperties"] = False
        del schema["propertyNames"]


def _name_properties(schema: _Schema, path: str, names: Sequence[str]) -> None:
    """All but the first refer to its schema, so that nothing is copied."""
    known = _map(schema.get("properties"))
    value = schema.get("additionalProperties", True)
    properties: _Schema = {}
    for name in names:
        properties[name] = known.get(name, value)
        if name not in known and isinstance(value, dict):
            value = {"$ref": quote(pointer(path, "properties", name), safe="#/~")}
    schema["properties"] = properties
    schema["additionalProperties"] = False
    del schema["propertyNames"]


def _pattern_of(names: object) -> str | None:
    """A pattern that says the same of a text as the whole schema does."""
    if not isinstance(names, dict):
        return None
    said = {key: value for key, value in names.items() if key not in _ANNOTATIONS}
    if said.pop("type", "string") != "string":
        return None
    match said:
        case {"pattern": str(pattern), **others} if not others:
            return pattern
        case {"format": str(form), **others} if not others and "pattern" in MEANINGS.get(form, ()):
            return str(MEANINGS[form]["pattern"])
        case {**others} if others and others.keys() <= {"minLength", "maxLength"}:
            return rf"^(?s:.){{{others.get('minLength', 0)},{others.get('maxLength', '')}}}$"
    return None


def _unique_items(schema: _Schema, path: str, document: _Document) -> None:
    """Lists of few values are written out, each arrangement a tuple."""
    least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if not isinstance(least, (int, float)) or not isinstance(most, (int, float)):
        return
    if schema.get("uniqueItems") is False or most in (0, 1):
        schema.pop("uniqueItems", None)
    if schema.get("uniqueItems") is not True or schema.get("type") != "array":
        return
    values = None if "prefixItems" in schema else _listed(schema.get("items"), document)
    if values is None or len(values) > MAX_ARRANGEMENTS or "anyOf" in schema:
        return
    arrangements = _arrangements(values, least, most)
    if not arrangements or any(_is_compound(value) for value in values):
        return
    if not document.may_write(sum(map(len, arrangements))):
        return
    for name in ("uniqueItems", "items", "minItems", "maxItems"):
        schema.pop(name, None)
    schema["anyOf"] = [
        {
            "type": "array",
            "prefixItems": [{"const": value} for value in each],
            "items": False,
            "minItems": len(each),
        }
        for each in arrangements
    ]


def _arrangements(values: Sequence[Any], least: float, most: float) -> list[tuple[Any, ...]]:
    """None at all where there are too many."""
    found: list[tuple[Any, ...]] = []
    for size in range(len(values) + 1):
        if least <= size <= most:
            left = MAX_ARRANGEMENTS - len(found)
            found += itertools.islice(itertools.permutations(values, size), left + 1)
        if len(found) > MAX_ARRANGEMENTS:
            return []
    return found


def _one_of(schema: _Schema, path: str, document: _Document) -> None:
    """Of branches that exclude each other at most one fits: the library does not look at what
    references lead to, and not at numbers."""
    branches = schema.get("oneOf")
    if not isinstance(branches, list) or "anyOf" in schema:
        return
    document.num_compared += math.comb(len(branches), 2)
    if document.num_compared > MAX_COMPARED:
        return
    facts = [_facts(branch, document) for branch in branches]
    if all(one.excludes(other) for one, other in itertools.combinations(facts, 2)):
        # In its place: the library orders properties by that of keywords.
        entries = [("anyOf" if key == "oneOf" else key, value) for key, value in schema.items()]
        schema.clear()
        schema.update(entries)


def _discriminator(schema: _Schema, path: str, document: _Document) -> None:
    """OpenAPI: the property by which branches are told apart is there, also where it has a default
    and is not required: pydantic reads no branch without it."""
    told = schema.get("discriminator")
    name = told.get("propertyName") if isinstance(told, dict) else None
    if schema.keys() & {"anyOf", "oneOf"} and isinstance(name, str):
        _also(schema, {"required": [name]})


def _unevaluated(schema: _Schema, path: str, document: _Document) -> None:
    """Where all that names properties is in sight, the others are additional ones."""
    if "additionalProperties" in schema:
        schema.pop("unevaluatedProperties", None)
    if schema.get("unevaluatedProperties") is not False or schema.keys() & _OTHER_APPLICATORS:
        return
    named: _Schema = dict(_map(schema.get("properties")))
    branches = schema.get("allOf", [])
    for branch in branches if isinstance(branches, list) else [None]:
        branch = _target(branch, document)
        if branch is None or branch.keys() - {"type", "properties", "required", *_ANNOTATIONS}:
            return
        inner = _map(branch.get("properties"))
        if not document.may_write(len(inner)):
            return
        named |= {name: True for name in inner if name not in named}
    schema["properties"] = named
    schema["additionalProperties"] = schema.pop("unevaluatedProperties")


_OTHER_APPLICATORS = frozenset(
    str.split("anyOf oneOf not if then else $ref $dynamicRef dependentSchemas patternProperties")
)


def _format(schema: _Schema, path: str, document: _Document) -> None:
    """A format that JSON Schema does not define means the pattern beside it, if there is one."""
    form = schema.get("format")
    if not isinstance(form, str):
        return
    if _OF_ZOD.get(form) == schema.get("pattern", ""):
        del schema["pattern"]
    says_nothing = form in FREE_FORMATS or ("pattern" in schema and form not in DEFINED_FORMATS)
    if says_nothing or (form in MEANINGS and _also(schema, dict(MEANINGS[form]))):
        del schema["format"]


def _encoding(schema: _Schema, path: str, document: _Document) -> None:
    """Bytes of msgspec and Go."""
    if schema.get("contentEncoding") == "base64" and "pattern" not in schema:
        schema["pattern"] = BASE64


def _look_ahead(schema: _Schema, path: str, document: _Document) -> None:
    """What a pattern looks for from its beginning is a pattern of its own."""
    while isinstance(schema.get("pattern"), str):
        split = split_look_ahead(schema["pattern"])
        if split is None or not _also(schema, {"pattern": split[0]}):
            break
        schema["pattern"] = split[1]


_Rule = Callable[[_Schema, str, _Document], None]
_RULES: tuple[_Rule, ...] = (
    _dialect,
    _nullable,
    _never,
    _unevaluated,  # before names become properties, which are evaluated
    _property_names,
    _unique_items,
    _discriminator,
    _one_of,
    _format,
    _encoding,
    _look_ahead,
)


def _also(schema: _Schema, more: _Schema) -> bool:
    """Have a schema ask for more; whether it could be told."""
    if not schema.keys() & more.keys():
        schema.update(more)
        return True
    if not isinstance(schema.setdefault("allOf", []), list):
        return False
    schema["allOf"] = [*schema["allOf"], more]
    return True


def _says_nothing(schema: object, kind: str | None = None) -> bool:
    """Whether anything satisfies it, or any value of one kind."""
    if not isinstance(schema, Mapping):
        return schema is True
    allowed = {*_ANNOTATIONS, "type"} if schema.get("type", ...) == kind else _ANNOTATIONS
    return schema.keys() <= allowed


def _target(schema: object, document: _Document) -> Mapping[str, Any] | None:
    """The schema that references lead to; None where they say more, or lead nowhere."""
    for _ in range(_MAX_HOPS):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        if schema.keys() - {"$ref", *_ANNOTATIONS}:
            return None
        schema = _at(str(schema["$ref"]), document)
    return schema if isinstance(schema, Mapping) and "$ref" not in schema else None


def _at(reference: str, document: _Document) -> object:
    start, *keys = reference.split("/")
    place: object = document.root if start == "#" else None
    for key in keys:
        key = unquote(key).replace("~1", "/").replace("~0", "~")
        place = place.get(key) if isinstance(place, Mapping) else None
    return place


_OF_ONE_VALUE: dict[str, list[Any]] = {"boolean": [False, True], "null": [None]}


def _listed(schema: object, document: _Document) -> list[Any] | None:
    """All values that it allows, once each, where it lists them."""
    target = _target(schema, document)
    if target is None:
        return None
    if id(target) not in document.listed:
        document.listed[id(target)] = target, _list(target, document)
    return document.listed[id(target)][1]


def _list(schema: Mapping[str, Any], document: _Document) -> list[Any] | None:
    branches = schema.get("anyOf")
    if schema.keys() - _ANNOTATIONS != {"anyOf"} or not isinstance(branches, list):
        return _own_list(schema)
    together: list[Any] = []
    for branch in branches:
        listed = _own_list(_target(branch, document) or {})
        if listed is None or len(together) > MAX_WRITTEN:
            return None
        together += listed
    return _once(together)


def _own_list(schema: Mapping[str, Any]) -> list[Any] | None:
    said = schema.keys() - _ANNOTATIONS
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
    found: dict[tuple[str, object], Any] = {}
    for value in values:
        found.setdefault(_identity(value), value)
    return list(found.values())


_KINDS = ("string", "boolean", "null", "number", "integer", "object", "array")


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    for kind, types in (("string", str), ("integer", int), ("number", float), ("array", list)):
        if isinstance(value, types):
            return kind
    return "null" if value is None else "object"


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """With the integers among numbers."""
    asked = schema.get("type", list(_KINDS))
    found = {kind for kind in (asked if isinstance(asked, list) else [asked]) if kind in _KINDS}
    return found | {"integer"} if "number" in found else found


def _map(value: object) -> Mapping[str, Any]:
    """Properties, which a client may have written as anything."""
    return value if isinstance(value, Mapping) else {}


def _is_compound(value: object) -> bool:
    """Whether it may be written in several ways, as numbers with a point are too."""
    return isinstance(value, (float, list, dict))


def _identity(value: object) -> tuple[str, object]:
    """Equal for values that JSON Schema takes for equal, if they are no compounds."""
    kind = _kind(value)
    if kind in ("array", "object"):
        return kind, repr(value)
    return "number" if kind == "integer" else kind, value


def _facts(schema: object, document: _Document) -> _Facts:
    target = _target(schema, document) or {}
    if id(target) not in document.facts:
        document.facts[id(target)] = target, _Facts.of(target, document)
    return document.facts[id(target)][1]


@dataclass(slots=True)
class _Facts:
    """Of a branch, what may keep it apart from others."""

    kinds: set[str]
    values: set[tuple[str, object]] | None
    marks: dict[str, set[tuple[str, object]]]
    """Of properties that have few values."""
    required: set[str]

    @classmethod
    def of(cls, found: Mapping[str, Any], document: _Document) -> _Facts:
        values = _values(found, document)
        marks = {
            name: listed
            for name, inner in _map(found.get("properties")).items()
            if (listed := _values(inner, document)) is not None
        }
        required = found.get("required")
        names = required if isinstance(required, list) else []
        return cls(
            kinds=_kinds(found) if values is None else {kind for kind, _ in values},
            values=values,
            marks=marks,
            required={name for name in names if isinstance(name, str)},
        )

    def excludes(self, other: _Facts) -> bool:
        """Whether no value fits both."""
        if not self.kinds & other.kinds:
            return True
        if self.values is not None and other.values is not None:
            return self.values.isdisjoint(other.values)
        if self.kinds != {"object"} and other.kinds != {"object"}:
            return False
        shared = self.marks.keys() & other.marks.keys() & (self.required | other.required)
        return any(self.marks[name].isdisjoint(other.marks[name]) for name in shared)


def _values(schema: object, document: _Document) -> set[tuple[str, object]] | None:
    """Of values that are no compounds, as far as they can be told apart."""
    listed = _listed(schema, document)
    if listed is None or any(_kind(value) in ("array", "object") for value in listed):
        return None
    return {_identity(value) for value in listed}

"""Schemas as generators write them, in the keywords that the library keeps.

Knows OpenAPI 3.0, and what pydantic, zod and others write of their types. Each rule rewrites what
one keyword of one schema says, exactly, or leaves it, to be refused by name. Tuples and bounds of
older drafts the library reads itself.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from octavo.structured.formats import BASE64, DEFINED_FORMATS, FREE_FORMATS, MEANINGS
from octavo.structured.json_schema import pointer, subschemas
from octavo.structured.regex_size import split_look_ahead
from octavo.structured.schema_values import (
    ANNOTATIONS,
    SchemaValues,
    as_map,
    is_compound,
    says_nothing,
)

MAX_ARRANGEMENTS = 400
"""Of the values of a list of unique items: five values can be arranged in 326 ways."""
MAX_WRITTEN = 10_000
"""Names and values that are written out in place of keywords, in a whole schema."""
MAX_COMPARED = 5_000
"""Pairs of branches of oneOf that are held against each other, in a whole schema."""
_OF_ZOD = {
    "duration": r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?"
    r"(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"
}
"""Patterns that look around themselves, and allow all that the format beside them does."""

_Schema = dict[str, Any]


@dataclass(slots=True)
class _Document:
    """What a schema is a part of, and how much has been made of its parts."""

    values: SchemaValues
    is_one: bool
    """Whether references are relative to all of it."""
    num_written: int = 0
    num_compared: int = 0

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
    document = _Document(SchemaValues(plain if is_one else {}), is_one)
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
    if "not" in schema and says_nothing(schema["not"]):
        schema.clear()
        schema["enum"] = []


def _property_names(schema: _Schema, path: str, document: _Document) -> None:
    """Names that are listed are properties; a pattern of names is one of patternProperties."""
    names = schema.get("propertyNames")
    if names is None or says_nothing(names, "string"):
        schema.pop("propertyNames", None)
        return
    if "patternProperties" in schema or not document.is_one:
        return
    listed = [] if names is False else document.values.listed(names)
    if listed is not None:
        if document.may_write(len(listed)) and all(isinstance(name, str) for name in listed):
            _name_properties(schema, path, listed)
    elif (pattern := _pattern_of(names)) is not None and "properties" not in schema:
        schema["patternProperties"] = {pattern: schema.get("additionalProperties", True)}
        schema["additionalProperties"] = False
        del schema["propertyNames"]


def _name_properties(schema: _Schema, path: str, names: Sequence[str]) -> None:
    """All but the first refer to its schema, so that nothing is copied."""
    known = as_map(schema.get("properties"))
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
    said = {key: value for key, value in names.items() if key not in ANNOTATIONS}
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
    values = None if "prefixItems" in schema else document.values.listed(schema.get("items"))
    if values is None or len(values) > MAX_ARRANGEMENTS or "anyOf" in schema:
        return
    arrangements = _arrangements(values, least, most)
    if not arrangements or any(is_compound(value) for value in values):
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
    facts = [document.values.facts(branch) for branch in branches]
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
    named: _Schema = dict(as_map(schema.get("properties")))
    branches = schema.get("allOf", [])
    for branch in branches if isinstance(branches, list) else [None]:
        branch = document.values.target(branch)
        if branch is None or branch.keys() - {"type", "properties", "required", *ANNOTATIONS}:
            return
        inner = as_map(branch.get("properties"))
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

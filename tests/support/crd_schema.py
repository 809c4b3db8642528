"""CustomResourceDefinitions as an API server reads them: structure, defaults, validation.

Knows the rules of structural schemas, of defaulting (top down, a parent's default first) and of
schema validation with unknown fields refused, as ``kubectl apply`` asks for. Refuses to know CEL:
that is ``crd_rules``. Small on purpose: it holds what this project's CRDs use and raises on what
it does not know.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import re2
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CRD_FILES = tuple(sorted((REPOSITORY / "crds").glob("*.yaml")))

Schema = Mapping[str, Any]

KNOWN_KEYWORDS = frozenset(
    {
        *("type", "format", "description", "default", "enum", "pattern", "required"),
        *("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"),
        *("maxProperties", "properties", "additionalProperties", "items"),
        *("x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
        *("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
    }
)
TYPES = frozenset({"object", "array", "string", "integer", "boolean"})


def load_crd(path: Path) -> dict[str, Any]:
    """The one document in ``path``."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def crd_of_kind(kind: str) -> dict[str, Any]:
    """The CRD of this repository for ``kind``; KeyError when there is none."""
    for path in CRD_FILES:
        crd = load_crd(path)
        if crd["spec"]["names"]["kind"] == kind:
            return crd
    raise KeyError(f"no CRD of kind {kind} in {REPOSITORY / 'crds'}")


def root_schema(crd: Mapping[str, Any]) -> Schema:
    """The schema of the only version."""
    (version,) = crd["spec"]["versions"]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema


def walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every node of the schema with its path, such as ``.spec.engine.args[]``."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


def structural_errors(crd: Mapping[str, Any]) -> list[str]:
    """What an API server would refuse the CRD for, one sentence each."""
    root = root_schema(crd)
    errors = [] if root.get("type") == "object" else ["the root must be an object"]
    for path, node in walk(root):
        own_errors = [f"{path or '.'}: {error}" for error in _node_errors(node)]
        errors += own_errors
        if "default" in node and not own_errors:
            errors += [f"{path}: default {error}" for error in schema_errors(node["default"], node)]
    metadata = root.get("properties", {}).get("metadata", {})
    if set(metadata) - {"type", "description", "properties"}:
        errors.append(".metadata: may restrict nothing but name and generateName")
    return errors


def _node_errors(node: Schema) -> Iterator[str]:
    for keyword in sorted(set(node) - KNOWN_KEYWORDS):
        yield f"keyword {keyword} is not allowed in a structural schema"
    untyped = node.get("x-kubernetes-int-or-string")
    if untyped and "type" in node:
        yield "an int-or-string has no type"
    if not untyped and node.get("type") not in TYPES:
        yield f"type {node.get('type')!r} is missing or unknown"
    if "properties" in node and "additionalProperties" in node:
        yield "properties and additionalProperties exclude each other"
    if (node.get("type") == "array") != ("items" in node):
        yield "items belongs to an array, and an array needs it"
    for name in node.get("required", ()):
        if name not in node.get("properties", {}):
            yield f"required field {name} is not a property"
    if "pattern" in node:
        re2.compile(node["pattern"])
    yield from _list_map_errors(node)


def _list_map_errors(node: Schema) -> Iterator[str]:
    keys = node.get("x-kubernetes-list-map-keys", [])
    if (node.get("x-kubernetes-list-type") == "map") != bool(keys):
        yield "list type map needs list-map-keys"
    for key in keys:
        item = node["items"]
        if key not in item.get("required", ()) and "default" not in item["properties"][key]:
            yield f"list-map-key {key} must be required or have a default"


def with_defaults(value: Any, schema: Schema) -> Any:
    """A copy of ``value`` with the schema's defaults filled in, parents before children."""
    if isinstance(value, dict):
        filled = dict(value)
        extra = schema.get("additionalProperties")
        for name, child in schema.get("properties", {}).items():
            if filled.get(name) is None:
                filled.pop(name, None)
                if "default" in child:
                    filled[name] = copy.deepcopy(child["default"])
        for name in filled:
            child = schema.get("properties", {}).get(name, extra)
            if child is not None:
                filled[name] = with_defaults(filled[name], child)
        return filled
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(item, schema["items"]) for item in value]
    return copy.deepcopy(value)


def schema_errors(value: Any, schema: Schema) -> list[str]:
    """Where ``value`` departs from the schema, unknown fields and duplicate list keys included."""
    validator = jsonschema.Draft4Validator(_strict(schema))
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in validator.iter_errors(value)
    ] + list(_duplicate_key_errors(value, schema))


def _strict(schema: Schema) -> dict[str, Any]:
    """The schema in plain JSON Schema: vendor keywords translated or dropped."""
    plain = {k: v for k, v in schema.items() if not k.startswith("x-") and k != "default"}
    if schema.get("x-kubernetes-int-or-string"):
        plain["type"] = ["integer", "string"]
    if "properties" in schema:
        plain["properties"] = {k: _strict(v) for k, v in schema["properties"].items()}
        plain["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), Mapping):
        plain["additionalProperties"] = _strict(schema["additionalProperties"])
    if "items" in schema:
        plain["items"] = _strict(schema["items"])
    return plain


def _duplicate_key_errors(value: Any, schema: Schema) -> Iterator[str]:
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name in value:
                yield from _duplicate_key_errors(value[name], child)
    elif isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys", [])
        seen = [tuple(item.get(key) for key in keys) for item in value if keys]
        if len(set(seen)) < len(seen):
            yield f"duplicate entries by {keys}"

"""Sets of fields, as server-side apply thinks of them.

A field is a path of steps: a string for a key of a mapping, a tuple for an item of a keyed list
(its key values). Items of keyed lists are members themselves, besides what is in them, so that an
item can be given up as a whole. Source: structured-merge-diff, and "Server-Side Apply" in the
Kubernetes documentation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from octavo_operator.manifests.merge_keys import item_key, merge_keys

Step: TypeAlias = str | tuple[Any, ...]
Path: TypeAlias = tuple[Step, ...]

_IDENTITY: Final = frozenset(
    {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}
)


def field_set(value: Mapping[str, Any]) -> dict[Path, Any]:
    """Every field of an object with its value; the object's identity is nobody's field."""
    found: dict[Path, Any] = {}
    _collect(value, (), found)
    return {path: item for path, item in found.items() if path not in _IDENTITY}


def _collect(value: Any, path: Path, found: dict[Path, Any]) -> None:
    if isinstance(value, Mapping) and (value or not path):
        for key, item in value.items():
            _collect(item, (*path, key), found)
        return
    keys = _list_keys(value, path)
    if keys is None or not value:
        found[path] = value
        return
    for item in value:
        place = (*path, item_key(item, keys))
        found[place] = None
        _collect(item, place, found)


def _list_keys(value: Any, path: Path) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not path or not isinstance(path[-1], str):
        return None
    if not all(isinstance(item, Mapping) for item in value):
        return None
    return merge_keys(path[-1], value)


def merge_fields(base: Any, overlay: Any, field: str = "") -> Any:
    """`base` with every field of `overlay` set; nothing is removed. Neither is changed."""
    if isinstance(overlay, Mapping) and isinstance(base, Mapping):
        merged = dict(base)
        for key, value in overlay.items():
            merged[key] = merge_fields(base.get(key), value, key)
        return merged
    keys = merge_keys(field, overlay) if isinstance(overlay, list) and field else None
    if keys is None or not isinstance(base, list):
        return overlay
    items = {item_key(item, keys): item for item in base}
    for item in overlay:
        identity = item_key(item, keys)
        items[identity] = merge_fields(items.get(identity, {}), item)
    return list(items.values())


def remove_fields(value: Mapping[str, Any], paths: Iterable[Path]) -> dict[str, Any]:
    """`value` without the fields at `paths`; mappings that become empty go too.

    The fields that tell an item of a keyed list from others stay as long as the item does.
    """
    # Shortest first: an item is found by its keys, so it must go before they do.
    remaining: Any = value
    for path in sorted(paths, key=len):
        remaining = _without(remaining, path, "")
    return dict(remaining)


def _without(value: Any, path: Path, field: str) -> Any:
    step, rest = path[0], path[1:]
    if isinstance(value, Mapping) and isinstance(step, str):
        if step not in value:
            return value
        if not rest:
            return {key: item for key, item in value.items() if key != step}
        child = _without(value[step], rest, step)
        if child in ({}, []) and value[step] not in ({}, []):
            return {key: item for key, item in value.items() if key != step}
        return {**value, step: child}
    if isinstance(value, list) and isinstance(step, tuple):
        keys = merge_keys(field, value)
        if keys is None:
            return value
        kept = []
        for item in value:
            is_key = len(rest) == 1 and rest[0] in keys
            if item_key(item, keys) != step or is_key:
                kept.append(item)
            elif rest:
                kept.append(_without(item, rest, ""))
        return kept
    return value


def to_fields_v1(paths: Iterable[Path]) -> dict[str, Any]:
    """The `fieldsV1` form of a set, as it stands in `metadata.managedFields`."""
    tree: dict[str, Any] = {}
    for path in sorted(paths, key=repr):
        place = tree
        for step in path:
            name = f"f:{step}" if isinstance(step, str) else f"k:{json.dumps(list(step))}"
            place = place.setdefault(name, {})
        if isinstance(path[-1], tuple):
            place["."] = {}
    return tree

"""Merging a user's overlay into a rendered object, the way `kubectl patch` does by default.

Knows the strategic rules: mappings merge, keyed lists merge by key, other lists are replaced, null
removes, `$patch: delete` removes a list item, `$patch: replace` replaces a mapping or list whole.
Source: kubernetes/community, contributors/devel/sig-api-machinery/strategic-merge-patch.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from octavo_operator.errors import ResourceError
from octavo_operator.manifests.merge_keys import item_key, merge_keys

_DIRECTIVE: Final = "$patch"


def merge_overlay(base: Mapping[str, Any], overlay: Mapping[str, Any], path: str) -> dict[str, Any]:
    """`base` with `overlay` merged in; `path` names the overlay in errors. Neither is changed."""
    if overlay.get(_DIRECTIVE) == "replace":
        return {key: value for key, value in overlay.items() if key != _DIRECTIVE}
    merged = dict(base)
    for key, value in overlay.items():
        if key == _DIRECTIVE:
            raise _unknown_directive(path, value)
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_value(merged.get(key), value, key, f"{path}.{key}")
    return merged


def _merge_value(base: Any, overlay: Any, field: str, path: str) -> Any:
    if isinstance(overlay, Mapping):
        if base is not None and not isinstance(base, Mapping):
            raise ResourceError(path, "is an object", "a plain value belongs there")
        return merge_overlay(base or {}, overlay, path)
    if isinstance(overlay, list):
        if base is not None and not isinstance(base, list):
            raise ResourceError(path, "is a list", "no list belongs there")
        return _merge_list(base or [], overlay, field, path)
    if isinstance(base, Mapping | list):
        raise ResourceError(path, f"is {overlay!r}", "an object or a list belongs there")
    return overlay


def _merge_list(base: list[Any], overlay: list[Any], field: str, path: str) -> list[Any]:
    directives = [item for item in overlay if _is_directive(item, "replace")]
    if directives:
        return [item for item in overlay if item not in directives]
    keys = merge_keys(field, [*base, *overlay])
    if keys is None:
        return list(overlay)
    merged = list(base)
    for index, item in enumerate(overlay):
        _merge_item(merged, item, keys, f"{path}[{index}]")
    return merged


def _merge_item(merged: list[Any], item: Any, keys: tuple[str, ...], path: str) -> None:
    if not isinstance(item, Mapping):
        raise ResourceError(path, f"is {item!r}", "give an object with named fields")
    missing = [key for key in keys if key != "protocol" and item.get(key) is None]
    if missing:
        raise ResourceError(
            path, f"has no {missing[0]}", f"items of this list are told apart by {missing[0]}"
        )
    identity = item_key(item, keys)
    place = next(
        (at for at, present in enumerate(merged) if item_key(present, keys) == identity), None
    )
    if item.get(_DIRECTIVE) == "delete":
        if place is not None:
            del merged[place]
        return
    if place is None:
        merged.append(merge_overlay({}, item, path))
    else:
        merged[place] = merge_overlay(merged[place], item, path)


def _is_directive(item: Any, directive: str) -> bool:
    return isinstance(item, Mapping) and dict(item) == {_DIRECTIVE: directive}


def _unknown_directive(path: str, value: object) -> ResourceError:
    return ResourceError(
        f"{path}.{_DIRECTIVE}", f"is {value!r}", "use replace, or delete on an item of a keyed list"
    )

"""Whether a live object still is what the operator applied.

Two tests, and both must pass: the hash annotation says that the wanted manifest is the one last
applied (so nothing the operator wants has changed, nor has a field been dropped), and every value
of the wanted manifest is found in the live object (so nobody has overwritten one). Values the
server or others added do not matter. The first test alone would miss edits by others; the second
alone would miss fields that must go away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from octavo_operator.labels import ANNOTATION_APPLIED_HASH
from octavo_operator.manifests.merge_keys import item_key, merge_keys
from octavo_operator.reconcile.live_object import LiveObject, annotations_of
from octavo_operator.resources.quantity import is_same_quantity

_TRUE_WHEN_ABSENT: Final = frozenset(
    {"allowPrivilegeEscalation", "automountServiceAccountToken", "enableServiceLinks"}
)


def is_applied(wanted: Mapping[str, Any], live: LiveObject) -> bool:
    """Whether applying `wanted`, a sealed manifest, to `live` would change nothing."""
    wanted_hash = wanted["metadata"]["annotations"][ANNOTATION_APPLIED_HASH]
    is_latest = annotations_of(live).get(ANNOTATION_APPLIED_HASH) == wanted_hash
    return is_latest and _contains(wanted, live, "")


def _contains(wanted: Any, live: Any, field: str) -> bool:
    if live is None and (wanted in (None, "", [], {}) or _is_left_out(wanted, field)):
        # The server does not store empty values.
        return True
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(
            _contains(value, live.get(key), key) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(live, list) and _contains_list(wanted, live, field)
    # The server rewrites quantities into their shortest form.
    return bool(wanted == live) or is_same_quantity(wanted, live)


def _is_left_out(wanted: Any, field: str) -> bool:
    """Whether `wanted` may be a zero that the server does not store: `paused: false`, `port: 0`."""
    return wanted in (False, 0) and field not in _TRUE_WHEN_ABSENT


def _contains_list(wanted: list[Any], live: list[Any], field: str) -> bool:
    keys = merge_keys(field, wanted)
    if keys is None:
        return len(wanted) == len(live) and all(
            _contains(left, right, field) for left, right in zip(wanted, live, strict=True)
        )
    by_key = {item_key(item, keys): item for item in live if isinstance(item, Mapping)}
    return all(_contains(item, by_key.get(item_key(item, keys)), field) for item in wanted)

"""`metadata.generation`: which kinds have one, and which changes make the next.

Source: `PrepareForCreate` and `PrepareForUpdate` in `pkg/registry/*/*/strategy.go` of Kubernetes
1.36, and `customresource/strategy.go` of its apiextensions-apiserver for kinds of a
CustomResourceDefinition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from octavo_operator.manifests.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    EVENT,
    HORIZONTAL_POD_AUTOSCALER,
    LEASE,
    NODE,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
)

_WITHOUT: Final = frozenset(
    {
        *(CONFIG_MAP, EVENT, HORIZONTAL_POD_AUTOSCALER, LEASE),
        *(NODE, SECRET, SERVICE, SERVICE_ACCOUNT),
    }
)
_COUNTED_METADATA: Final[Mapping[Kind, str]] = {DEPLOYMENT: "annotations", ENDPOINT_SLICE: "labels"}
"""What counts beside the content: annotations, as its controller carries them on to ReplicaSets."""


def first_generation(kind: Kind) -> dict[str, int]:
    """`metadata` of a new object, as far as its generation goes."""
    return {} if kind in _WITHOUT else {"generation": 1}


def next_generation(kind: Kind, before: Mapping[str, Any], after: Mapping[str, Any]) -> int | None:
    """The generation of an object that is `before` and becomes `after`; None for a kind without."""
    generation = before["metadata"].get("generation")
    if generation is None:
        return None
    return int(generation) + (_counted(kind, before) != _counted(kind, after))


def _counted(kind: Kind, body: Mapping[str, Any]) -> dict[str, Any]:
    """Its content, that it is to go, and for some kinds a part of `metadata`."""
    metadata = body["metadata"]
    counted = {key: value for key, value in body.items() if key not in ("metadata", "status")}
    counted["deletionTimestamp"] = metadata.get("deletionTimestamp")
    if kind in _COUNTED_METADATA:
        counted["more"] = metadata.get(_COUNTED_METADATA[kind]) or {}
    return counted

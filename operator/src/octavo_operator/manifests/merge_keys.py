"""Which lists in Kubernetes objects are keyed, and by what.

Source: the `x-kubernetes-list-map-keys` and `x-kubernetes-patch-merge-key` of the OpenAPI document
of Kubernetes 1.37, for the kinds the operator writes. Lists not named here are replaced whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_MERGE_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "resourceClaims": ("name",),
    "claims": ("name",),
    "schedulingGates": ("name",),
    "readinessGates": ("conditionType",),
    "conditions": ("type",),
    "ownerReferences": ("uid",),
}
_CONTAINER_PORT_KEYS: Final = ("containerPort", "protocol")
_SERVICE_PORT_KEYS: Final = ("port", "protocol")
_PROTOCOL_DEFAULT: Final = "TCP"


def merge_keys(field: str, items: list[Any]) -> tuple[str, ...] | None:
    """Keys that identify the items of the list under `field`; None when the list is atomic.

    `ports` is two different lists; which one is told by the items themselves.
    """
    if field == "ports":
        is_container = any(isinstance(item, Mapping) and "containerPort" in item for item in items)
        return _CONTAINER_PORT_KEYS if is_container else _SERVICE_PORT_KEYS
    return _MERGE_KEYS.get(field)


def item_key(item: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    """The identity of a list item; `protocol` counts as TCP where it is left out."""
    return tuple(
        item.get(key, _PROTOCOL_DEFAULT) if key == "protocol" else item.get(key) for key in keys
    )

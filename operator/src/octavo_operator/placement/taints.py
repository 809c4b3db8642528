"""Which nodes take a pod at all, by their taints and whether they are cordoned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_KEEPS_OUT: Final = frozenset({"NoSchedule", "NoExecute"})


def takes_pods(
    node: Mapping[str, Any], resource: str, tolerations: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether the scheduler may put a pod with these tolerations there, that asks for `resource`.

    A taint that is named after the resource counts for none: most clusters that have it let pods
    tolerate it by asking (admission plugin ExtendedResourceToleration).
    """
    spec = node.get("spec") or {}
    taints = [taint for taint in spec.get("taints") or () if taint.get("effect") in _KEEPS_OUT]
    return not spec.get("unschedulable") and all(
        taint.get("key") == resource or any(_tolerates(each, taint) for each in tolerations)
        for taint in taints
    )


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """Source: "Taints and Tolerations" in the Kubernetes documentation."""
    key, is_any = toleration.get("key"), toleration.get("operator") == "Exists"
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if not key:
        return is_any
    is_value = (toleration.get("value") or "") == (taint.get("value") or "")
    return bool(key == taint.get("key")) and (is_any or is_value)

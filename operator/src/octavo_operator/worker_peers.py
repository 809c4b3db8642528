"""Who may reach worker pods: decided once, for all services.

Knows the form of NetworkPolicy peers; the policy made of them is a builder's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_KINDS_OF_PEER: Final = frozenset({"podSelector", "namespaceSelector", "ipBlock"})

Peers = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class WorkerPeers:
    """NetworkPolicy peers.

    api: who may ask, beside the namespace's own pods: the operator, which holds calls; gateways.
    admin: who may reach metrics and the routes of administrators: the operator and Prometheus.
    """

    api: Peers = ()
    admin: Peers = ()


NAMESPACE_ONLY: Final = WorkerPeers()
"""Nobody from elsewhere."""


def parse_peers(value: object) -> WorkerPeers | None:
    """`value`, a parsed JSON document `{"api": [...], "admin": [...]}`; None when it is none."""
    if not isinstance(value, dict) or value.keys() - {"api", "admin"}:
        return None
    api, admin = _peers(value.get("api", [])), _peers(value.get("admin", []))
    return None if api is None or admin is None else WorkerPeers(api, admin)


def _peers(value: object) -> Peers | None:
    if not isinstance(value, list):
        return None
    for item in value:
        if not isinstance(item, dict) or not item or item.keys() - _KINDS_OF_PEER:
            return None
    return tuple(value)

"""Who may reach worker pods from outside their namespace: decided once, for all services.

Knows the form of NetworkPolicy peers; the policy made of them is a builder's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_KINDS_OF_PEER: Final = frozenset({"podSelector", "namespaceSelector", "ipBlock"})


@dataclass(frozen=True, slots=True)
class WorkerPeers:
    """NetworkPolicy peers beside the namespace's own pods: the operator, Prometheus, gateways."""

    others: tuple[Mapping[str, Any], ...] = ()


NAMESPACE_ONLY: Final = WorkerPeers()
"""Nobody from elsewhere."""


def parse_peers(value: object) -> WorkerPeers | None:
    """`value`, a parsed JSON document, as peers; None when it is no list of such."""
    if not isinstance(value, list):
        return None
    for item in value:
        if not isinstance(item, dict) or not item or item.keys() - _KINDS_OF_PEER:
            return None
    return WorkerPeers(tuple(value))

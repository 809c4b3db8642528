"""The cluster's nodes, as far as GPUs go: listed when somebody needs them, and then kept a while.

Not watched: every node reports every few seconds, and only a model that is yet to be placed makes
one ask. What is kept of a node is its labels and what pods may ask of it.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from octavo_operator.cluster.interface import Cluster
from octavo_operator.errors import ForbiddenError
from octavo_operator.manifests.kinds import NODE
from octavo_operator.reconcile.live_object import LiveObject

logger = logging.getLogger(__name__)

KEPT_S: Final = 50.0
"""Shorter than the time after which an unplaced model is looked at again."""


class NodeReader:
    """Asks `cluster`; one that may not be asked has no nodes to tell of."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._nodes: tuple[LiveObject, ...] = ()
        self._read_at_s: float | None = None

    def recent(self) -> tuple[LiveObject, ...] | None:
        """The nodes as they were a moment ago; None when nobody has asked since."""
        if self._read_at_s is None or time.monotonic() - self._read_at_s > KEPT_S:
            return None
        return self._nodes

    async def read(self) -> None:
        """Look now; raises ClusterError when they cannot be had."""
        try:
            listed = await self._cluster.list_objects(NODE, None, {})
            self._nodes = tuple(map(_slim, listed.items))
        except ForbiddenError as error:
            logger.warning("%s; what GPUs there are is not known", error)
            self._nodes = ()
        self._read_at_s = time.monotonic()


def _slim(node: LiveObject) -> LiveObject:
    metadata, status = node["metadata"], node.get("status") or {}
    spec = node.get("spec") or {}
    return {
        "metadata": {"name": metadata["name"], "labels": metadata.get("labels") or {}},
        "spec": {key: spec[key] for key in ("unschedulable", "taints") if key in spec},
        "status": {"allocatable": status.get("allocatable") or {}},
    }

"""Posts events about our resources. An event that cannot be posted is not insisted on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from octavo_operator.cluster.interface import Cluster
from octavo_operator.errors import ClusterError
from octavo_operator.labels import API_VERSION, FIELD_MANAGER
from octavo_operator.manifests.kinds import EVENT, Kind
from octavo_operator.reconcile.conditions import timestamp
from octavo_operator.reconcile.events import Announcement, announcements
from octavo_operator.reconcile.live_object import LiveObject

logger = logging.getLogger(__name__)


class Announcer:
    """See the module."""

    def __init__(self, cluster: Cluster, clock: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._clock = clock

    async def announce(self, kind: Kind, resource: LiveObject, status: Mapping[str, Any]) -> None:
        """Tell what `status` has new over the one that `resource` was read with."""
        for item in announcements(resource.get("status"), status):
            await self.post(kind, resource, item)

    async def post(self, kind: Kind, resource: LiveObject, item: Announcement) -> None:
        """Tell one thing about `resource`."""
        try:
            await self._cluster.create(self._event(kind, resource, item))
        except ClusterError as error:
            logger.info("event %s is not posted: %s", item.reason, error)

    def _event(self, kind: Kind, resource: LiveObject, item: Announcement) -> dict[str, Any]:
        metadata, now = resource["metadata"], timestamp(self._clock())
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {
                "generateName": f"{metadata['name']}.",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": kind.kind,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": item.type,
            "reason": item.reason,
            "message": item.message,
            "source": {"component": FIELD_MANAGER},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }

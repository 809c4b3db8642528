"""Writes the status of LoRAAdapters: one idempotent pass over one of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.cluster.interface import Cluster
from octavo_operator.errors import NotFoundError
from octavo_operator.manifests.kinds import LORA_ADAPTER
from octavo_operator.reconcile.adapters import adapter_status
from octavo_operator.reconcile.observed import LiveObject


class AdapterReporter:
    """See the module."""

    def __init__(
        self, cluster: Cluster, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._seen: dict[ServiceKey, LiveObject] = {}

    def all_adapters(self) -> tuple[LiveObject, ...]:
        """Every LoRAAdapter as it was last looked at, for the metrics."""
        return tuple(self._seen.values())

    async def report(self, adapter: ServiceKey) -> None:
        """One pass; raises ClusterError when it must be tried again."""
        try:
            resource = await self._cluster.get(LORA_ADAPTER, *adapter)
        except NotFoundError:
            self._seen.pop(adapter, None)
            return
        self._seen[adapter] = resource
        status = adapter_status(resource, self._clock())
        if status is not None:
            await self._cluster.write_status(
                LORA_ADAPTER, *adapter, status, resource["metadata"]["resourceVersion"]
            )

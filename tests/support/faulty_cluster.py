"""A cluster in memory whose every call can be made to fail, and is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

from octavo_operator.cluster.interface import ObjectList, WatchEvent
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import ClusterError
from octavo_operator.labels import FIELD_MANAGER
from octavo_operator.manifests.kinds import Kind
from octavo_operator.reconcile.live_object import LiveObject


class FaultyCluster:
    """Implements `Cluster` by `store`.

    faults: errors for the calls to come, None for one that goes through; used up in order.
    always: an error for every call, while it is set. is_done_first: a fault comes after the work,
    as when the answer is lost. calls: by verb and plural.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.faults: list[ClusterError | None] = []
        self.always: ClusterError | None = None
        self.is_done_first = False
        self.calls: Counter[str] = Counter()

    async def _go(self, verb: str, kind: str, work: Any) -> Any:
        self.calls[f"{verb} {kind}"] += 1
        fault = self.always or (self.faults.pop(0) if self.faults else None)
        if fault is not None and not self.is_done_first:
            work.close()
            raise fault
        result = await work
        if fault is not None:
            raise fault
        return result

    async def served_kinds(self) -> frozenset[Kind]:
        kinds: frozenset[Kind] = await self._go("discover", "kinds", self.store.served_kinds())
        return kinds

    async def get(self, kind: Kind, namespace: str, name: str) -> LiveObject:
        return await self._go("get", kind.plural, self.store.get(kind, namespace, name))

    async def list_objects(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str]
    ) -> ObjectList:
        work = self.store.list_objects(kind, namespace, labels)
        listed: ObjectList = await self._go("list", kind.plural, work)
        return listed

    async def watch(
        self,
        kind: Kind,
        namespace: str | None,
        labels: Mapping[str, str],
        resource_version: str,
    ) -> AsyncIterator[WatchEvent]:
        self.calls[f"watch {kind.plural}"] += 1
        fault = self.always or (self.faults.pop(0) if self.faults else None)
        if fault is not None:
            raise fault
        async for event in self.store.watch(kind, namespace, labels, resource_version):
            yield event

    async def apply(self, manifest: Mapping[str, Any], manager: str = FIELD_MANAGER) -> LiveObject:
        return await self._go("apply", manifest["kind"], self.store.apply(manifest, manager))

    async def create(self, manifest: Mapping[str, Any]) -> LiveObject:
        return await self._go("create", manifest["kind"], self.store.create(manifest))

    async def update(self, manifest: Mapping[str, Any]) -> LiveObject:
        return await self._go("update", manifest["kind"], self.store.update(manifest))

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        await self._go("delete", kind.plural, self.store.delete(kind, namespace, name, uid))

    async def merge(
        self, kind: Kind, namespace: str, name: str, patch: Mapping[str, Any]
    ) -> LiveObject:
        return await self._go("merge", kind.plural, self.store.merge(kind, namespace, name, patch))

    async def write_status(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        status: Mapping[str, Any],
        resource_version: str,
    ) -> LiveObject:
        work = self.store.write_status(kind, namespace, name, status, resource_version)
        return await self._go("status", kind.plural, work)

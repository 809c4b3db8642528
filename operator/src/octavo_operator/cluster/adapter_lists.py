"""The ConfigMaps that tell pods to come of their adapters: as they are, and written anew.

What is in one is `reconcile.adapter_wanted`'s to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator.cluster.child_index import ChildIndex
from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.cluster.interface import Cluster
from octavo_operator.errors import ConflictError, NamesakeError
from octavo_operator.manifests.adapter_list import adapter_list_name
from octavo_operator.manifests.kinds import CONFIG_MAP, kind_of
from octavo_operator.manifests.leader_worker_set import leading_template
from octavo_operator.manifests.workload_kind import WORKLOAD_KINDS
from octavo_operator.reconcile.live_object import LiveObject, is_owned_by
from octavo_operator.reconcile.worker_pod import WorkerPod, pod_of_template


class AdapterLists:
    """`uid` is always that of the InferenceService: what belongs to a namesake that is gone does
    not count. None for a service that is not there, to which nothing belongs."""

    def __init__(self, cluster: Cluster, index: ChildIndex) -> None:
        self._cluster = cluster
        self._index = index

    def reader(self, service: ServiceKey, uid: str | None) -> WorkerPod | None:
        """What pods to come are like; None when there is no workload."""
        for child in self._index.children_of(service):
            if kind_of(child) in WORKLOAD_KINDS and is_owned_by(child, uid):
                return pod_of_template(leading_template(child))
        return None

    def present(self, service: ServiceKey, uid: str | None) -> LiveObject | None:
        """The list as it is; None when there is none."""
        name = adapter_list_name(service[1])
        found = (live for live in self._index.lists_of(service) if is_owned_by(live, uid))
        return next((live for live in found if live["metadata"]["name"] == name), None)

    async def write(self, service: ServiceKey, wanted: Mapping[str, Any]) -> None:
        """Make it, or change what is in it; NamesakeError where somebody else has made one."""
        (owner,) = wanted["metadata"]["ownerReferences"]
        if self.present(service, owner["uid"]) is not None:
            live = await self._change(wanted)
        else:
            try:
                live = await self._cluster.create(wanted)
            except ConflictError:
                live = await self._change_unlabelled(wanted, owner["uid"])
        self._index.remember(live)

    async def _change_unlabelled(self, wanted: Mapping[str, Any], uid: str) -> LiveObject:
        """Give one back its labels that has lost those by which we know our own."""
        name = wanted["metadata"]["name"]
        live = await self._cluster.get(CONFIG_MAP, wanted["metadata"]["namespace"], name)
        if not is_owned_by(live, uid):
            raise NamesakeError(CONFIG_MAP.kind, name)
        return await self._change(wanted)

    async def _change(self, wanted: Mapping[str, Any]) -> LiveObject:
        metadata = wanted["metadata"]
        patch = {"metadata": {"labels": metadata["labels"]}, "data": wanted["data"]}
        return await self._cluster.merge(CONFIG_MAP, metadata["namespace"], metadata["name"], patch)

"""Who calls a service that may have no pods: asked of the call holder and of the pods."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from octavo_operator.cluster.activator import CallHolder, can_serve
from octavo_operator.cluster.admin_access import AdminAccess
from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.errors import WorkerUnreachableError
from octavo_operator.reconcile.live_object import LiveObject, is_going
from octavo_operator.reconcile.replicas import NO_DEMAND, Demand
from octavo_operator.worker_client import WorkerClient


class DemandReader:
    """Keeps a place to hold calls for every service that scales to zero, and only for those."""

    def __init__(self, holder: CallHolder, workers: WorkerClient, access: AdminAccess) -> None:
        self._holder = holder
        self._workers = workers
        self._access = access

    async def read(
        self, service: ServiceKey, resource: LiveObject, pods: tuple[LiveObject, ...]
    ) -> Demand:
        """The demand now; services that do not scale to zero have none to be asked for."""
        if not _may_sleep(resource):
            await self._holder.close(service)
            return NO_DEMAND
        activator = await self._holder.open(service)
        idle_s = await self._idle_s(pods)
        return Demand(self._holder.num_held(service), idle_s, activator)

    async def forget(self, service: ServiceKey) -> None:
        """The service is gone."""
        await self._holder.close(service)

    async def _idle_s(self, pods: tuple[LiveObject, ...]) -> float | None:
        """For how long no pod has had a request; None when one of them does not say."""
        ready = [self._access.endpoint(pod) for pod in pods if can_serve(pod)]
        workers = [worker for worker in ready if worker is not None]
        if not workers:
            return None
        try:
            loads = await asyncio.gather(*map(self._workers.load, workers))
        except WorkerUnreachableError:
            return None
        return min(0.0 if load.open_requests else load.idle_s for load in loads)


def _may_sleep(resource: Mapping[str, Any]) -> bool:
    """Told from the resource as it stands; whether it is valid is the planner's business."""
    if is_going(resource):
        return False
    spec = resource.get("spec")
    scaling = spec.get("scaling") if isinstance(spec, Mapping) else None
    return isinstance(scaling, Mapping) and scaling.get("minReplicas") == 0

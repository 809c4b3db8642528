"""Keeps every InferenceService looked after: when something of it changes, and now and then."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

from octavo_operator.cluster.activator import CallHolder
from octavo_operator.cluster.adapter_keeper import AdapterKeeper
from octavo_operator.cluster.adapter_ledger import OnLoad
from octavo_operator.cluster.admin_access import AdminAccess
from octavo_operator.cluster.child_index import ChildIndex
from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.cluster.interface import Cluster
from octavo_operator.cluster.reconciler import Reconciler
from octavo_operator.cluster.work_queue import WorkQueue
from octavo_operator.errors import ClusterError
from octavo_operator.manifests.kinds import INFERENCE_SERVICE, LORA_ADAPTER
from octavo_operator.worker_client import WorkerClient
from octavo_operator.worker_peers import NAMESPACE_ONLY, WorkerPeers

logger = logging.getLogger(__name__)

_RESYNC_SPREAD: Final = 0.2

OnPass = Callable[[str, float, Exception | None], None]
"""Told of each pass: the kind of resource, the seconds it took, and its error, None for success."""


class Follower:
    """Owns the index, the queue and the reconciler of a set of namespaces (empty: all).

    `holder` makes what holds the calls of services without pods, from this follower's index;
    `has_nodes_and_jobs` is false for a cluster that is one machine in disguise;
    without `access` the keys to workers are known to this follower alone.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespaces: Sequence[str],
        default_image: str,
        resync_s: float,
        *,
        worker_peers: WorkerPeers | None = NAMESPACE_ONLY,
        access: AdminAccess | None = None,
        workers: WorkerClient | None = None,
        holder: Callable[[Follower], CallHolder] | None = None,
        prometheus_url: str | None = None,
        has_nodes_and_jobs: bool = True,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_pass: OnPass = lambda resource, seconds, error: None,
        on_load: OnLoad = lambda seconds, reason: None,
    ) -> None:
        self._cluster = cluster
        self._scopes: Sequence[str | None] = namespaces or (None,)
        self._resync_s = resync_s
        self._holder = holder(self) if holder is not None else None
        access = access or AdminAccess.for_this_run()
        self.index = ChildIndex(cluster, namespaces, self._poke)
        self.reconciler = Reconciler(
            cluster,
            self.index,
            default_image,
            worker_peers=worker_peers,
            access=access,
            workers=workers,
            holder=self._holder,
            prometheus_url=prometheus_url,
            # A Role in some namespaces cannot give a right on nodes.
            can_see_nodes=not namespaces and has_nodes_and_jobs,
            can_inspect=has_nodes_and_jobs,
            look_later=self._look_later,
            clock=clock,
        )
        self.queue = WorkQueue(
            self.reconciler.reconcile, on_done=partial(on_pass, INFERENCE_SERVICE.kind)
        )
        self.adapters = AdapterKeeper(
            cluster,
            self.index,
            workers or WorkerClient(),
            access,
            look_later=lambda service, delay_s: self.adapter_queue.add_later(service, delay_s),
            clock=clock,
            on_load=on_load,
        )
        self.adapter_queue = WorkQueue(
            self.adapters.look_after, on_done=partial(on_pass, LORA_ADAPTER.kind)
        )

    def see_service(self, service: ServiceKey) -> None:
        """The InferenceService has changed, come or gone."""
        self.queue.add(service)
        if self.adapters.concerns(service):
            self.adapter_queue.add(service)

    def see_adapter(self, service: ServiceKey) -> None:
        """A LoRAAdapter of that service has changed, come or gone."""
        self.adapter_queue.add(service)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.index.run(), name="child index")
                tasks.create_task(self.queue.run(), name="work queue")
                tasks.create_task(self.adapter_queue.run(), name="adapter queue")
                tasks.create_task(self._resync(), name="resync")
        finally:
            await self.adapters.close()
            if self._holder is not None:
                await self._holder.close_all()

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self._resync_s * random.uniform(1 - _RESYNC_SPREAD, 1))
            await self._unless_it_fails(self.reconciler.refresh_served_kinds)
            for scope in self._scopes:
                await self._unless_it_fails(partial(self._see_all, scope))
            for service in self.adapters.services():
                self.adapter_queue.add(service)

    async def _unless_it_fails(self, look: Callable[[], Awaitable[None]]) -> None:
        try:
            await look()
        except ClusterError as error:
            logger.warning("resync put off: %s", error)

    async def _see_all(self, scope: str | None) -> None:
        for resource in (await self._cluster.list_objects(INFERENCE_SERVICE, scope, {})).items:
            metadata = resource["metadata"]
            self.see_service((metadata["namespace"], metadata["name"]))

    def _look_later(self, service: ServiceKey, delay_s: float) -> None:
        self.queue.add_later(service, delay_s)

    def _poke(self, service: ServiceKey) -> None:
        if service[1]:
            self.see_service(service)

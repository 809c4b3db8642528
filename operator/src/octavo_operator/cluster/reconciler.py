"""Observe, plan, apply, report: one idempotent pass over one InferenceService.

Carries out what `reconcile.plan` decides and decides nothing itself, except which failures are the
user's to see in the status and which are to be waited out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from octavo_operator.cluster.activator import CallHolder
from octavo_operator.cluster.admin_access import AdminAccess
from octavo_operator.cluster.alterations import Alterations
from octavo_operator.cluster.announcer import Announcer
from octavo_operator.cluster.child_index import ChildIndex
from octavo_operator.cluster.demand import DemandReader
from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.cluster.interface import Cluster
from octavo_operator.cluster.node_reader import NodeReader
from octavo_operator.cluster.startup_reports import StartupReports
from octavo_operator.errors import (
    ClusterError,
    ConflictError,
    ForbiddenError,
    NamesakeError,
    NotFoundError,
    RejectedError,
    WebhookError,
)
from octavo_operator.manifests.kinds import INFERENCE_SERVICE, Kind, kind_of
from octavo_operator.reconcile.live_object import LiveObject, is_owned_by
from octavo_operator.reconcile.observed import Observed
from octavo_operator.reconcile.plan import Apply, Plan, plan
from octavo_operator.reconcile.replicas import NO_DEMAND, Demand
from octavo_operator.reconcile.status import Obstacle
from octavo_operator.worker_client import WorkerClient
from octavo_operator.worker_peers import NAMESPACE_ONLY, WorkerPeers

logger = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 3
"""Passes within one call when somebody else keeps writing to the resource at the same time."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What workers and callers say, asked once a pass."""

    phases_s: Mapping[str, Mapping[str, float]]
    demand: Demand


class Reconciler:
    """`workers` is how workers are asked about themselves, None for not at all, `access` where, and
    with which key; `holder` holds the calls of services without pods; `look_later` has a service
    looked at again after some seconds; `can_see_nodes` and `can_inspect` tell whether there are
    nodes to look at, and whether Jobs are run."""

    def __init__(
        self,
        cluster: Cluster,
        index: ChildIndex,
        default_image: str,
        *,
        worker_peers: WorkerPeers | None = NAMESPACE_ONLY,
        access: AdminAccess,
        workers: WorkerClient | None = None,
        holder: CallHolder | None = None,
        prometheus_url: str | None = None,
        can_see_nodes: bool = False,
        can_inspect: bool = True,
        look_later: Callable[[ServiceKey, float], None] = lambda service, delay_s: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._index = index
        self._default_image = default_image
        self._worker_peers = worker_peers
        self._access = access
        self._reports = StartupReports(workers, access) if workers is not None else None
        self._demand = DemandReader(holder, workers, access) if holder and workers else None
        self._prometheus_url = prometheus_url
        self._nodes = NodeReader(cluster) if can_see_nodes else None
        self._can_inspect = can_inspect
        self._look_later = look_later
        self._announcer = Announcer(cluster, clock)
        self._clock = clock
        self._alterations = Alterations()
        self._locks: dict[ServiceKey, asyncio.Lock] = {}
        self._served_kinds: frozenset[Kind] | None = None

    async def refresh_served_kinds(self) -> None:
        """Learn which optional kinds there are; they come and go with other people's charts."""
        self._served_kinds = await self._cluster.served_kinds()

    async def reconcile(self, service: ServiceKey) -> None:
        """One pass; raises ClusterError when it must be tried again.

        Passes over the same resource wait for each other.
        """
        async with self._locks.setdefault(service, asyncio.Lock()):
            await self._index.wait_listed(service[0])
            await self._reconcile(service)

    async def _reconcile(self, service: ServiceKey) -> None:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                resource = await self._cluster.get(INFERENCE_SERVICE, *service)
            except NotFoundError:
                # Its children go by their owner references.
                self._locks.pop(service, None)
                self._alterations.forget(service)
                if self._demand is not None:
                    await self._demand.forget(service)
                return
            try:
                await self._pass(service, resource)
                return
            except ConflictError:
                if attempt == MAX_ATTEMPTS:
                    raise

    async def _pass(self, service: ServiceKey, resource: LiveObject) -> None:
        if self._served_kinds is None:
            await self.refresh_served_kinds()
        pods = self._index.pods_of(service)
        told = _Told(
            await self._reports.of(pods) if self._reports is not None else {},
            await self._demand.read(service, resource, pods) if self._demand else NO_DEMAND,
        )
        first = self._plan(service, resource, told, None)
        if first.wants_nodes and self._nodes is not None:
            await self._nodes.read()
            first = self._plan(service, resource, told, None)
        failure = await self._write(service, resource, first)
        status = first.status
        if first.applies or first.deletes:
            obstacle = _obstacle(failure) if failure is not None else None
            status = self._plan(service, resource, told, obstacle).status
        if status is not None:
            await self._cluster.write_status(
                INFERENCE_SERVICE, *service, status, resource["metadata"]["resourceVersion"]
            )
            await self._announcer.announce(INFERENCE_SERVICE, resource, status)
        if first.look_again_s is not None:
            self._look_later(service, first.look_again_s)
        if isinstance(failure, ForbiddenError | WebhookError):
            # Others may put it right without any change that we would be told of.
            raise failure

    def _plan(
        self,
        service: ServiceKey,
        resource: LiveObject,
        told: _Told,
        obstacle: Obstacle | None,
    ) -> Plan:
        observed = Observed(
            resource=resource,
            children=self._index.children_of(service),
            pods=self._index.pods_of(service),
            served_kinds=self._served_kinds or frozenset(),
            worker_peers=self._worker_peers,
            startup_phases_s=told.phases_s,
            demand=told.demand,
            prometheus_url=self._prometheus_url,
            companions=self._index.companions_of(service),
            nodes=self._nodes.recent() if self._nodes is not None else None,
            can_inspect=self._can_inspect,
            admin_key_sha256=self._access.key_sha256(service),
        )
        return plan(observed, self._default_image, self._clock(), obstacle)

    async def _write(
        self, service: ServiceKey, resource: LiveObject, todo: Plan
    ) -> ClusterError | None:
        """Carry out all but the status; the first failure that the user must see ends it."""
        try:
            for apply in todo.applies:
                known, now = self._known_child(service, apply), self._clock()
                if self._alterations.holds_back(service, apply.manifest, known, now):
                    continue
                if known is None:
                    await self._refuse_namesake(service, resource, apply)
                live = await self._cluster.apply(apply.manifest, apply.manager)
                logger.info("%s/%s: applied %s", *service, apply.manifest["kind"])
                self._index.remember(live)
                self._alterations.note(service, apply.manifest, live, now)
            for delete in todo.deletes:
                await self._cluster.delete(delete.kind, delete.namespace, delete.name, delete.uid)
                logger.info("%s/%s: deleted %s %s", *service, delete.kind.kind, delete.name)
        except NotFoundError:
            # An optional kind has gone, or the namespace; look again at what there is.
            self._served_kinds = None
            raise
        except (RejectedError, ForbiddenError, NamesakeError, WebhookError) as error:
            return error
        return None

    def _known_child(self, service: ServiceKey, apply: Apply) -> LiveObject | None:
        kind, name = kind_of(apply.manifest), apply.manifest["metadata"]["name"]
        children = self._index.children_of(service)
        found = (child for child in children if child["metadata"]["name"] == name)
        return next((child for child in found if kind_of(child) == kind), None)

    async def _refuse_namesake(
        self, service: ServiceKey, resource: LiveObject, apply: Apply
    ) -> None:
        """Never take over an object that somebody else made under the name we need.

        Asked of the server only when the index, which sees labelled objects alone, knows of none.
        """
        kind, name = kind_of(apply.manifest), apply.manifest["metadata"]["name"]
        try:
            present = await self._cluster.get(kind, service[0], name)
        except NotFoundError:
            return
        if not is_owned_by(present, resource["metadata"]["uid"]):
            raise NamesakeError(kind.kind, name)


def _obstacle(error: ClusterError) -> Obstacle:
    if isinstance(error, NamesakeError):
        return Obstacle("NameConflict", str(error))
    if isinstance(error, ForbiddenError):
        return Obstacle(
            "Forbidden", f"{error}; grant the operator the right, or raise the namespace's quota"
        )
    if isinstance(error, WebhookError):
        return Obstacle("WebhookFailed", f"{error}; repair the webhook, or change its rules")
    return Obstacle("ApplyRejected", f"{error}; correct the spec, most likely spec.template")

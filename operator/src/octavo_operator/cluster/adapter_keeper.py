"""Keeps the adapters of every InferenceService where they belong: observe, plan, apply, report.

Carries out what `reconcile.adapters` decides. A pass never waits for a load: those go on by
themselves, and each that ends has the service looked at again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Final, TypeAlias

from octavo_operator.cluster.adapter_ledger import AdapterLedger, OnLoad
from octavo_operator.cluster.adapter_lists import AdapterLists
from octavo_operator.cluster.adapter_writer import AdapterWriter
from octavo_operator.cluster.admin_access import AdminAccess
from octavo_operator.cluster.announcer import Announcer
from octavo_operator.cluster.child_index import ChildIndex
from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.cluster.interface import Cluster
from octavo_operator.errors import (
    ClusterError,
    ConflictError,
    NotFoundError,
    WorkerUnreachableError,
)
from octavo_operator.manifests.kinds import INFERENCE_SERVICE, LORA_ADAPTER
from octavo_operator.reconcile.adapter_facts import ListedAdapter
from octavo_operator.reconcile.adapter_world import AdapterWorld
from octavo_operator.reconcile.adapters import (
    SILENT_POD_S,
    AdapterPlan,
    Report,
    attempts_in_use,
    plan_adapters,
)
from octavo_operator.reconcile.live_object import LiveObject, is_going
from octavo_operator.reconcile.worker_pod import (
    WorkerPod,
    takes_adapters,
    worker_pods,
)
from octavo_operator.worker_adapters import complete_adapters, list_adapters
from octavo_operator.worker_client import WorkerClient, WorkerEndpoint

logger = logging.getLogger(__name__)

Endpoints: TypeAlias = Mapping[str, WorkerEndpoint]
"""Where to ask each pod, by its uid."""

CALLS: Final = 64
"""Loads and unloads under way, of all services together."""

MAX_ATTEMPTS: Final = 3
"""Passes within one call when somebody else, the service's own passes say, writes as well."""

SETTLE_S: Final = 0.2
"""Loads that end within this time are reported together."""


class AdapterKeeper:
    """`look_later` has a service looked at again after some seconds; `on_load` is told of loads."""

    def __init__(
        self,
        cluster: Cluster,
        index: ChildIndex,
        workers: WorkerClient,
        access: AdminAccess,
        *,
        look_later: Callable[[ServiceKey, float], None],
        clock: Callable[[], datetime],
        on_load: OnLoad = lambda seconds, reason: None,
    ) -> None:
        self._cluster = cluster
        self._index = index
        self._workers = workers
        self._access = access
        self._lists = AdapterLists(cluster, index)
        self._look_later = look_later
        self._clock = clock
        self._on_load = on_load
        self._announcer = Announcer(cluster, clock)
        self._limit = asyncio.Semaphore(CALLS)
        self._ledgers: dict[ServiceKey, AdapterLedger] = {}
        self._seen: dict[ServiceKey, tuple[LiveObject, ...]] = {}
        self._going: dict[ServiceKey, dict[str, datetime]] = {}

    def all_adapters(self) -> tuple[LiveObject, ...]:
        """Every LoRAAdapter as it was last looked at, for the metrics, whose thread asks."""
        return tuple(adapter for adapters in list(self._seen.values()) for adapter in adapters)

    def services(self) -> tuple[ServiceKey, ...]:
        """Those that have adapters, or had when last looked at."""
        return tuple(self._seen)

    def concerns(self, service: ServiceKey) -> bool:
        """Whether a change of `service`, or of a pod of it, may be one for its adapters."""
        return service in self._seen or any(map(takes_adapters, self._index.pods_of(service)))

    async def close(self) -> None:
        """Let go of all that is under way."""
        for ledger in self._ledgers.values():
            await ledger.close()

    async def look_after(self, service: ServiceKey) -> None:
        """One pass; raises ClusterError when it must be tried again."""
        await self._index.wait_listed(service[0])
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                await self._pass(service)
                return
            except ConflictError:
                if attempt == MAX_ATTEMPTS:
                    raise

    async def _pass(self, service: ServiceKey) -> None:
        ledger = self._ledger(service)
        # Before the pods are asked: what ends meanwhile need not be in their lists yet.
        busy = ledger.busy
        namespace, name = service
        resource = await self._service(service)
        uid = resource["metadata"]["uid"] if resource is not None else None
        listed = await self._cluster.list_objects(LORA_ADAPTER, namespace, {})
        adapters = tuple(item for item in listed.items if _service_name(item) == name)
        found = self._index.pods_of(service)
        pods = worker_pods(found)
        endpoints = self._endpoints(found)
        self._note(service, adapters)
        told = ((resource or {}).get("status") or {}).get("adapters")
        if not adapters and not told and not any(pod.takes_adapters for pod in pods):
            return
        listings, held, silences = await self._listings(pods, endpoints)
        world = AdapterWorld(
            name=name,
            service=resource,
            adapters=adapters,
            pods=pods,
            listings=listings,
            held=held,
            going_since=self._going.get(service, {}),
            silences=silences,
            attempts=ledger.attempts,
            busy={**busy, **ledger.busy},
            now_s=time.monotonic(),
            now=self._clock(),
            template=self._lists.reader(service, uid),
            list_=self._lists.present(service, uid),
        )
        plan = plan_adapters(world)
        self._show(service, plan)
        ledger.keep_only(attempts_in_use(world), {pod.uid for pod in pods})
        await self._carry_out(service, plan, ledger, endpoints)
        if plan.look_again_s is not None:
            self._look_later(service, plan.look_again_s)

    async def _carry_out(
        self,
        service: ServiceKey,
        plan: AdapterPlan,
        ledger: AdapterLedger,
        endpoints: Endpoints,
    ) -> None:
        """All of it, whatever fails of it; the first failure is raised at the end."""
        for load in plan.loads:
            ledger.start_load(load, endpoints[load.pod.uid])
        for unload in plan.unloads:
            ledger.start_unload(unload, endpoints[unload.pod.uid])
        writer = AdapterWriter(self._cluster, self._announcer)
        writes: list[Callable[[], Awaitable[None]]] = [
            *(partial(self._admit, service, pod, endpoints[pod.uid]) for pod in plan.admits),
            *(partial(writer.hold, resource) for resource in plan.holds),
            *(partial(writer.report, report) for report in plan.reports),
            *(partial(writer.release, departure) for departure in plan.releases),
        ]
        if plan.wanted is not None:
            # Before a status promises to all what it is.
            writes.insert(0, partial(self._lists.write, service, plan.wanted))
        if plan.service_report is not None:
            writes.append(partial(self._report_to_service, service, plan.service_report))
        failures = []
        for write in writes:
            try:
                await write()
            except ClusterError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def _report_to_service(self, service: ServiceKey, report: Report) -> None:
        version = report.resource["metadata"]["resourceVersion"]
        with contextlib.suppress(NotFoundError):
            await self._cluster.write_status(INFERENCE_SERVICE, *service, report.status, version)

    def _endpoints(self, pods: tuple[LiveObject, ...]) -> Endpoints:
        found = {str(pod["metadata"]["uid"]): self._access.endpoint(pod) for pod in pods}
        return {uid: worker for uid, worker in found.items() if worker is not None}

    async def _service(self, service: ServiceKey) -> LiveObject | None:
        try:
            return await self._cluster.get(INFERENCE_SERVICE, *service)
        except NotFoundError:
            return None

    async def _listings(
        self, pods: tuple[WorkerPod, ...], endpoints: Endpoints
    ) -> tuple[dict[str, Mapping[str, ListedAdapter]], frozenset[str], dict[str, str]]:
        """By pod uid: what each lists, which are held, and why the others do not."""
        able = [pod for pod in pods if pod.takes_adapters and pod.is_started]
        asked = [pod.uid for pod in able if pod.uid in endpoints]
        answers = await asyncio.gather(
            *(list_adapters(self._workers, endpoints[uid]) for uid in asked),
            return_exceptions=True,
        )
        listings: dict[str, Mapping[str, ListedAdapter]] = {}
        held: set[str] = set()
        silences: dict[str, str] = {}
        for uid, answer in zip(asked, answers, strict=True):
            if isinstance(answer, WorkerUnreachableError):
                silences[uid] = str(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                listings[uid], is_held = answer
                held |= {uid} if is_held else set()
        return listings, frozenset(held), silences

    async def _admit(self, service: ServiceKey, pod: WorkerPod, worker: WorkerEndpoint) -> None:
        """Let a pod into service."""
        try:
            await complete_adapters(self._workers, worker)
        except WorkerUnreachableError as error:
            # It has gone meanwhile, or says later whether it still waits.
            logger.info("pod %s is not told that no adapter is missing: %s", pod.name, error)
            self._look_later(service, SILENT_POD_S)

    def _ledger(self, service: ServiceKey) -> AdapterLedger:
        ledger = self._ledgers.get(service)
        if ledger is None:
            ledger = AdapterLedger(
                self._workers,
                self._limit,
                self._on_load,
                lambda: self._look_later(service, SETTLE_S),
            )
            self._ledgers[service] = ledger
        return ledger

    def _note(self, service: ServiceKey, adapters: tuple[LiveObject, ...]) -> None:
        going = [item["metadata"] for item in adapters if is_going(item)]
        known, now = self._going.get(service, {}), self._clock()
        self._going[service] = {str(one["uid"]): known.get(str(one["uid"]), now) for one in going}
        if adapters:
            self._seen[service] = adapters
            return
        self._seen.pop(service, None)
        if not self.concerns(service) and not self._ledger(service).busy:
            del self._ledgers[service], self._going[service]

    def _show(self, service: ServiceKey, plan: AdapterPlan) -> None:
        """To the metrics, what statuses are to say: our own writes bring no other pass."""
        due = {str(one.resource["metadata"]["uid"]): one.status for one in plan.reports}
        if service in self._seen:
            self._seen[service] = tuple(
                {**item, "status": {**(item.get("status") or {}), **due[uid]}}
                if (uid := str(item["metadata"]["uid"])) in due
                else item
                for item in self._seen[service]
            )


def _service_name(adapter: LiveObject) -> str:
    reference = (adapter.get("spec") or {}).get("serviceRef") or {}
    return str(reference.get("name", ""))

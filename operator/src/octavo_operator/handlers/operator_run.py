"""`octavo-operator run`: everything put together and kept running until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import kopf

from octavo_operator.cluster.activator import Activator, CallHolder
from octavo_operator.cluster.admin_access import AdminAccess, load_admin_access
from octavo_operator.cluster.follower import Follower
from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.cluster.interface import Cluster
from octavo_operator.cluster.kubernetes_api import KubernetesApi
from octavo_operator.cluster.leader_lease import LeaderLease
from octavo_operator.cluster.own_kinds import wait_for_own_kinds
from octavo_operator.handlers.events import register_events
from octavo_operator.handlers.kopf_settings import configure_kopf
from octavo_operator.handlers.kopf_thread import run_kopf
from octavo_operator.handlers.liveness import register_liveness
from octavo_operator.handlers.metrics import OperatorMetrics
from octavo_operator.handlers.operation_metrics import OperationMetrics
from octavo_operator.manifests.kinds import INFERENCE_SERVICE, LORA_ADAPTER
from octavo_operator.settings import NUM_ACTIVATOR_PORTS, OperatorSettings
from octavo_operator.worker_client import WorkerClient

logger = logging.getLogger(__name__)

RELEASE_LIMIT_S: Final = 3.0


async def run_operator(
    settings: OperatorSettings, *, is_in_cluster: bool, stop_flag: asyncio.Event | None = None
) -> None:
    """Until a signal, or `stop_flag`; raises SettingsError when there is no way to a cluster."""
    metrics = OperatorMetrics()
    connecting = KubernetesApi.connect(
        settings.request_timeout_s,
        is_in_cluster=is_in_cluster,
        on_call=metrics.operation.note_call,
    )
    async with await connecting as cluster, _metrics_server(metrics, settings):
        if settings.namespaces:
            # Without the right to follow CustomResourceDefinitions kopf looks for them once.
            await wait_for_own_kinds(cluster)
        follower = Follower(
            cluster,
            settings.namespaces,
            settings.worker_image,
            settings.resync_s,
            worker_peers=settings.worker_peers,
            access=await _admin_access(cluster, settings),
            workers=WorkerClient(),
            holder=_activator(settings) if settings.pod_ip else None,
            prometheus_url=settings.prometheus_url or None,
            on_pass=metrics.operation.note_pass,
            on_load=metrics.note_load,
        )
        metrics.watch_pods(follower.index.all_pods)
        metrics.watch_adapters(follower.adapters.all_adapters)
        office = _Office(_lease(cluster, settings), metrics.operation)
        queues = {INFERENCE_SERVICE.kind: follower.queue, LORA_ADAPTER.kind: follower.adapter_queue}
        # What waits in a standby waits for ever, and rightly so.
        metrics.operation.watch_queues(lambda: queues if office.is_held else {})
        metrics.operation.watch_watches(
            lambda now: follower.index.contacts_s(now) if office.is_held else {}
        )
        await _run_until_first_ends(follower, office, settings, stop_flag or asyncio.Event())


async def _admin_access(cluster: Cluster, settings: OperatorSettings) -> AdminAccess:
    """Had before anything else is done: until then this operator is not ready, so that an update
    of the operator stops at one that may not read its key."""
    if settings.pod_namespace:
        return await load_admin_access(cluster, settings.pod_namespace, settings.admin_key_secret)
    logger.warning(
        "--pod-namespace is not given, so the key to workers' admin ports is kept nowhere; the "
        "next operator cannot load adapters into pods that start now"
    )
    return AdminAccess.for_this_run()


def _activator(settings: OperatorSettings) -> Callable[[Follower], CallHolder]:
    """Makes the activator of a follower: it looks for pods there, and tells of calls there."""
    ports = range(settings.activator_port, settings.activator_port + NUM_ACTIVATOR_PORTS)

    def make(follower: Follower) -> CallHolder:
        return Activator(
            settings.pod_ip,
            ports,
            settings.activator_hold_s,
            pods=lambda service: follower.index.pods_of(service),
            on_call=lambda service: follower.queue.add(service),
        )

    return make


async def _run_until_first_ends(
    follower: Follower,
    office: _Office,
    settings: OperatorSettings,
    stop_flag: asyncio.Event,
) -> None:
    """kopf, our own informers and our queues live and die together.

    kopf runs on a standby too: it answers the probes, and what it sees waits in the queues.
    """
    registry = kopf.OperatorRegistry()
    register_login(registry)
    loop = asyncio.get_running_loop()
    register_events(
        registry,
        lambda service: _hand_over(loop, follower.see_service, service),
        lambda service: _hand_over(loop, follower.see_adapter, service),
    )
    register_liveness(registry, follower, loop)
    kopf_settings = kopf.OperatorSettings()
    configure_kopf(kopf_settings, settings)
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, RuntimeError):
            loop.add_signal_handler(number, stop_flag.set)
    ours = [asyncio.create_task(_lead(office, follower))]
    theirs = asyncio.create_task(run_kopf(registry, kopf_settings, settings, stop_flag))
    try:
        await asyncio.wait({theirs, *ours}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop_flag.set()
        for task in ours:
            task.cancel()
        results = await asyncio.gather(theirs, *ours, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


def _lease(cluster: Cluster, settings: OperatorSettings) -> LeaderLease | None:
    if not settings.pod_namespace:
        return None
    identity = settings.pod_name or socket.gethostname()
    return LeaderLease(cluster, settings.pod_namespace, settings.lease_name, identity)


class _Office:
    """Whether this operator leads: by a Lease, or always where there is none."""

    def __init__(self, lease: LeaderLease | None, metrics: OperationMetrics) -> None:
        self.is_held = False
        self._lease = lease
        self._metrics = metrics

    async def take(self) -> None:
        """Until this operator leads."""
        if self._lease is not None:
            await self._lease.acquire()
        self._hold(True)

    async def keep(self) -> None:
        """As long as it leads; raises LeaseLostError when it does not any more."""
        if self._lease is None:
            await asyncio.Event().wait()
        else:
            await self._lease.keep()

    async def leave(self) -> None:
        """Let the next one lead at once."""
        self._hold(False)
        if self._lease is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RELEASE_LIMIT_S):
                    await self._lease.release()

    def _hold(self, is_held: bool) -> None:
        self.is_held = is_held
        self._metrics.set_leader(is_held)


async def _lead(office: _Office, follower: Follower) -> None:
    """Work once this is the leader, and for as long as it is."""
    await office.take()
    work = [asyncio.create_task(part) for part in (office.keep(), follower.run())]
    try:
        done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await office.leave()


def _hand_over(
    loop: asyncio.AbstractEventLoop, see: Callable[[ServiceKey], None], service: ServiceKey
) -> None:
    """From kopf's thread into the queues' loop; while that loop ends, events do not matter."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(see, service)


def register_login(registry: kopf.OperatorRegistry) -> None:
    """kopf logs in with the same service account or KUBECONFIG as our own client does."""
    kopf.on.login(id="login", registry=registry, retries=3, backoff=2)(kopf.login_via_client)


@asynccontextmanager
async def _metrics_server(
    metrics: OperatorMetrics, settings: OperatorSettings
) -> AsyncIterator[None]:
    if not settings.metrics_port:
        yield
        return
    server = metrics.serve(settings.metrics_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()

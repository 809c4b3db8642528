"""The kubelet of this machine: a process for each pod in the store, until the pod is deleted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final

from octavo_operator.address import Address
from octavo_operator.cluster.interface import EventType
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import ClusterError, NotFoundError, WorkerFailedError
from octavo_operator.local.addresses import AddressPool
from octavo_operator.local.container import Machine
from octavo_operator.local.pod_process import PodEvents, PodProcess
from octavo_operator.manifests.kinds import CONFIG_MAP, POD
from octavo_operator.reconcile.live_object import LiveObject, is_going, is_ready_pod

logger = logging.getLogger(__name__)

POD_FINALIZER: Final = "octavo.dev/local-process"
"""Keeps a deleted pod in the store until its process has drained, as kubelet's grace does."""


class PodRuntime:
    """`on_line` and `on_failed` get the pod's name and what `PodEvents` says.

    num_devices: GPUs that this machine counts as having; a pod that finds too few free waits, as
    the scheduler of a cluster has it wait. None: as many as are asked for.
    """

    def __init__(
        self,
        store: ObjectStore,
        machine: Machine,
        *,
        on_line: Callable[[str, str, bool], None],
        on_failed: Callable[[str, WorkerFailedError, bool], None],
        num_devices: int | None = None,
    ) -> None:
        self._store = store
        self._machine = machine
        self._on_failed = on_failed
        self._addresses = AddressPool()
        self._pods: dict[str, PodProcess] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._namespaces: dict[str, str] = {}
        self._num_devices = num_devices
        self._held_devices: dict[str, int] = {}
        self._waiting: dict[str, LiveObject] = {}
        self._is_closing = False
        self._updates: asyncio.Queue[tuple[str, dict[str, Any] | None]] = asyncio.Queue()
        self._events = PodEvents(
            status=lambda name, status: self._updates.put_nowait((name, status)),
            line=on_line,
            failed=self._note_failure,
        )

    def ready_addresses(self, pods: tuple[LiveObject, ...]) -> tuple[Address, ...]:
        """Where those of `pods` listen that are ready and not on their way out."""
        found = []
        for pod in pods:
            process = self._pods.get(pod["metadata"]["name"])
            if process is not None and process.address is not None and is_ready_pod(pod):
                found.append(process.address)
        return tuple(found)

    async def run(self) -> None:
        """Follow the store until cancelled; then stop what still runs, at once."""
        writer = asyncio.create_task(self._write_statuses())
        try:
            listed = await self._store.list_objects(POD, None, {})
            for pod in listed.items:
                self._see(pod)
            async for event in self._store.watch(POD, None, {}, listed.resource_version):
                if event.type is not EventType.DELETED:
                    self._see(event.object)
        finally:
            self.kill_all()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            writer.cancel()

    def close(self) -> None:
        """Stop all pods, and start no more."""
        self._is_closing = True
        for process in self._pods.values():
            process.stop()

    def kill_all(self) -> None:
        """End all pods at once, and start no more."""
        self._is_closing = True
        for process in self._pods.values():
            process.kill()

    async def wait_empty(self) -> None:
        """Until no pod's process is left."""
        while self._tasks:
            await asyncio.wait(set(self._tasks.values()))
            await asyncio.sleep(0)

    def _see(self, pod: LiveObject) -> None:
        name = pod["metadata"]["name"]
        if is_going(pod):
            process = self._pods.get(name)
            if process is not None:
                process.stop()
            elif self._waiting.pop(name, None) is not None:
                self._updates.put_nowait((name, None))
        elif name not in self._pods and name not in self._waiting and not self._is_closing:
            self._namespaces[name] = pod["metadata"]["namespace"]
            self._start(pod)

    def _start(self, pod: LiveObject) -> None:
        name, (resource, wanted) = pod["metadata"]["name"], _devices_of(pod)
        free = (self._num_devices or 0) - sum(self._held_devices.values())
        if self._num_devices is not None and wanted > free:
            self._waiting[name] = pod
            self._updates.put_nowait((name, _unschedulable(resource)))
            return
        self._held_devices[name] = wanted
        process = PodProcess(pod, self._machine, self._addresses, self._events, self._config_maps)
        self._pods[name] = process
        self._tasks[name] = asyncio.create_task(self._run(process), name=f"pod {name}")

    async def _config_maps(self, pod: LiveObject) -> dict[str, dict[str, str]]:
        volumes = pod["spec"].get("volumes") or ()
        found = {}
        for name in (volume["configMap"]["name"] for volume in volumes if "configMap" in volume):
            with contextlib.suppress(NotFoundError):
                live = await self._store.get(CONFIG_MAP, pod["metadata"]["namespace"], name)
                found[name] = dict(live.get("data") or {})
        return found

    def _start_waiting(self) -> None:
        """Somebody has gone; try those that wait, in their order."""
        waiting, self._waiting = self._waiting, {}
        for pod in waiting.values():
            self._start(pod)

    async def _run(self, process: PodProcess) -> None:
        try:
            await process.run()
        except Exception:  # a bug in one pod must not end the others
            logger.exception("pod %s failed", process.name)
        finally:
            del self._pods[process.name]
            del self._tasks[process.name]
            self._held_devices.pop(process.name, None)
            await self._let_go(process.name)
            if not self._is_closing:
                self._start_waiting()

    async def _let_go(self, name: str) -> None:
        """Nothing of the pod is left on this machine, so its object may go."""
        with contextlib.suppress(ClusterError):
            namespace = self._namespaces.pop(name)
            await self._store.merge(POD, namespace, name, {"metadata": {"finalizers": None}})

    async def _write_statuses(self) -> None:
        while True:
            name, status = await self._updates.get()
            namespace = self._namespaces.get(name)
            if namespace is None:
                continue
            if status is None:
                await self._let_go(name)
                continue
            with contextlib.suppress(ClusterError):
                await self._store.write_status(POD, namespace, name, status, None)

    def _note_failure(self, name: str, error: WorkerFailedError) -> None:
        process = self._pods.get(name)
        self._on_failed(name, error, process is not None and process.was_ready)


def _devices_of(pod: LiveObject) -> tuple[str, int]:
    """Name and number of the extended resource that the pod asks for; 0 for none."""
    for container in pod["spec"]["containers"]:
        for resource, amount in (container.get("resources", {}).get("limits") or {}).items():
            if "/" in resource:
                return resource, int(amount)
    return "", 0


def _unschedulable(resource: str) -> dict[str, Any]:
    message = f"0/1 nodes are available: 1 Insufficient {resource}."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {"phase": "Pending", "conditions": [{**condition, "message": message}]}

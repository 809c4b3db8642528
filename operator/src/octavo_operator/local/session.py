"""One run of `octavo-operator local`: a cluster in memory, from first to last process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from octavo_operator.address import Address
from octavo_operator.cluster.follower import Follower
from octavo_operator.cluster.interface import EventType
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import LocalError, OctavoOperatorError, WorkerFailedError
from octavo_operator.holding_proxy import HoldingProxy
from octavo_operator.local.container import Machine
from octavo_operator.local.deployment_controller import DeploymentController
from octavo_operator.local.pod_runtime import PodRuntime
from octavo_operator.local.progress import Progress
from octavo_operator.local.proxy_holder import ProxyHolder
from octavo_operator.local.resource_file import ResourceFile, explain_ignored, read_resource_file
from octavo_operator.manifests.kinds import INFERENCE_SERVICE, LORA_ADAPTER
from octavo_operator.reconcile.conditions import FEATURES_READY, PROGRESSING, READY
from octavo_operator.reconcile.live_object import conditions_of
from octavo_operator.resources.inference_service import parse_inference_service
from octavo_operator.worker_client import WorkerClient

FILE_POLL_S: Final = 1.0
TICK_S: Final = 0.1
_CURL_MAX_TOKENS: Final = 60
_MANAGER: Final = "octavo-operator-local"
HOPELESS_REASONS: Final = frozenset(
    {
        *("InvalidSpec", "NotImplementedYet", "NameConflict", "ApplyRejected", "ScaledToZero"),
        *("GPUMemoryUnknown", "DoesNotFit", "NotDivisible", "LeaderWorkerSetMissing"),
    }
)
"""Reasons of Ready=False that waiting does not cure."""


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What was read from `file`, where to serve it, and what processes get from this machine.

    num_devices: GPUs that this machine counts as having, None for any number.
    """

    file: Path
    content: ResourceFile
    host: str
    port: int
    machine: Machine
    is_verbose: bool = False
    num_devices: int | None = None


class LocalSession:
    """Use `run`; `stop` drains and ends it, `kill` ends it at once."""

    def __init__(
        self,
        options: LocalOptions,
        progress: Progress,
        on_ready: Callable[[str], None] = lambda base_url: None,
    ) -> None:
        self._options = options
        self._progress = progress
        self._on_ready = on_ready
        self._secrets = dict(options.content.secrets)
        self._store = ObjectStore()
        self._follower = Follower(
            self._store,
            (),
            "local-worker",
            resync_s=3600.0,
            has_nodes_and_jobs=False,
            workers=WorkerClient(),
            holder=lambda follower: ProxyHolder(options.host, lambda: self._proxy),
        )
        self._runtime = PodRuntime(
            self._store,
            replace(options.machine, secrets=self._secrets),
            on_line=self._on_line,
            on_failed=self._on_failed,
            num_devices=options.num_devices,
        )
        self._controller = DeploymentController(self._store)
        self._proxy = HoldingProxy(
            options.host,
            options.port,
            self._endpoints,
            on_call=lambda: self._follower.queue.add(self._service),
        )
        self._service = ("", "")
        self._stopping = asyncio.Event()
        self._failure: WorkerFailedError | None = None
        self._failed = asyncio.Event()
        self._is_ready = False
        self._has_changed = False

    def stop(self) -> None:
        self._stopping.set()

    def kill(self) -> None:
        self._stopping.set()
        self._runtime.kill_all()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def base_url(self) -> str:
        return Address(self._options.host, self._proxy.port).url

    async def run(self) -> None:
        """Until stopped; raises OctavoOperatorError when it cannot start, with all cleaned up."""
        content = self._options.content
        for entry in content.ignored:
            self._progress.event(explain_ignored(entry))
        await self._proxy.start()
        background = [
            asyncio.create_task(work)
            for work in (
                self._follower.run(),
                self._controller.run(),
                self._runtime.run(),
                self._tick(),
            )
        ]
        try:
            await self.apply(content.resource, content.adapters)
            await self._serve(background)
        finally:
            await self._shut_down(background)

    async def apply(
        self, resource: Mapping[str, Any], adapters: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Create the resources, or bring them to what is given; raises ResourceError.

        Adapters that are there and not among `adapters` any more are deleted.
        """
        service = parse_inference_service(resource)
        self._service = (service.namespace, service.name)
        await self._store.apply(resource, _MANAGER)
        for adapter in adapters:
            await self._store.apply(adapter, _MANAGER)
        names = {adapter["metadata"]["name"] for adapter in adapters}
        for live in (await self._store.list_objects(LORA_ADAPTER, service.namespace, {})).items:
            if live["metadata"]["name"] not in names:
                await self._store.delete(LORA_ADAPTER, service.namespace, live["metadata"]["name"])
        self._follower.see_service(self._service)
        self._follower.see_adapter(self._service)

    async def _serve(self, background: list[asyncio.Task[None]]) -> None:
        waits = [
            asyncio.create_task(wait)
            for wait in (
                self._stopping.wait(),
                self._failed.wait(),
                self._report(),
                self._report_adapters(),
                self._follow_file(),
            )
        ]
        try:
            await asyncio.wait({*waits, *background}, return_when=asyncio.FIRST_COMPLETED)
            for task in (*waits, *background):
                if task.done():
                    task.result()
        finally:
            for task in waits:
                task.cancel()
        if self._failure is not None and not self.is_stopping:
            raise self._failure

    async def _report(self) -> None:
        """Follow the resource's own status, as a user of a cluster would, and say what it says."""
        said, course = "", ""
        async for event in self._store.watch(INFERENCE_SERVICE, None, {}, "0"):
            conditions = conditions_of(event.object)
            course = self._report_rollout(conditions.get(PROGRESSING), course)
            ready, features = conditions.get(READY), conditions.get(FEATURES_READY)
            if ready is None or features is None:
                continue
            if ready["reason"] in HOPELESS_REASONS:
                raise LocalError(ready["message"])
            sentence = f"{ready['reason']}: {ready['message']}"
            if features["status"] == "False" and not said:
                self._progress.event(f"not in effect: {features['message']}")
            if sentence != said and not (self._is_ready and ready["status"] == "True"):
                self._progress.event(sentence)
            said = sentence
            if ready["status"] == "True" and not self._is_ready:
                self._is_ready = True
                self._progress.settle()
                self._on_ready(self.base_url)

    def _report_rollout(self, progressing: Mapping[str, Any] | None, course: str) -> str:
        """Say how a change of the file ends, and what holds it up. `course`: the reason that the
        service had; returns the one that it has."""
        if progressing is None or progressing["reason"] == course:
            return course
        if self._has_changed and progressing["reason"] != "RollingOut":
            self._progress.event(f"{progressing['reason']}: {progressing['message']}")
        return str(progressing["reason"])

    async def _report_adapters(self) -> None:
        """Say what becomes of each adapter, whenever that is something new."""
        said: dict[str, str] = {}
        async for event in self._store.watch(LORA_ADAPTER, None, {}, "0"):
            name = event.object["metadata"]["name"]
            ready = conditions_of(event.object).get(READY)
            if event.type is EventType.DELETED:
                said.pop(name, None)
                self._progress.event(f"adapter {name} is unloaded")
            elif ready is not None and said.get(name) != ready["message"]:
                said[name] = ready["message"]
                self._progress.event(f"adapter {name}: {ready['reason']}: {ready['message']}")

    async def _follow_file(self) -> None:
        """Apply the file again when it changes, as `kubectl apply` would."""
        before = _changed_at(self._options.file)
        while True:
            await asyncio.sleep(FILE_POLL_S)
            now = _changed_at(self._options.file)
            if now is None or now == before:
                continue
            before = now
            try:
                content = read_resource_file(self._options.file)
                metadata = content.resource["metadata"]
                if (metadata["namespace"], metadata["name"]) != self._service:
                    raise LocalError("the resource's name has changed; start again to serve it")
                # Pods that start from now on have them; those that run keep theirs.
                self._secrets.clear()
                self._secrets.update(content.secrets)
                self._has_changed = True
                await self.apply(content.resource, content.adapters)
            except OctavoOperatorError as error:
                self._progress.event(f"{error} (what was there before keeps serving)")
            else:
                self._progress.event(f"applied {self._options.file} again")

    async def _shut_down(self, background: list[asyncio.Task[None]]) -> None:
        self._proxy.close()
        if self._is_ready and not self._failed.is_set():
            self._progress.event("draining; press Ctrl-C again to end at once")
        # Requests in flight go on while the pods drain; new ones are not taken any more.
        await self._store.delete(INFERENCE_SERVICE, *self._service)
        await asyncio.sleep(0)
        self._runtime.close()
        if not any(task.done() for task in background):
            await self._runtime.wait_empty()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self._proxy.finish()
        self._progress.settle()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._progress.tick()

    def _endpoints(self) -> tuple[Address, ...]:
        return self._runtime.ready_addresses(self._follower.index.pods_of(self._service))

    def _on_line(self, pod: str, text: str, is_transient: bool) -> None:
        if is_transient:
            self._progress.show(f"{pod}: {text}")
        elif self._options.is_verbose or not self._is_ready:
            self._progress.event(f"{pod}: {text}")

    def _on_failed(self, pod: str, error: WorkerFailedError, was_ready: bool) -> None:
        """The first start must succeed; later, the pods are restarted as in a cluster."""
        if self.is_stopping:
            return
        if self._is_ready or was_ready:
            self._progress.event(f"{error}; it is started again")
            return
        self._failure = error
        self._failed.set()


def curl_line(base_url: str, served_name: str, *, needs_key: bool) -> str:
    """A command to paste: one question to the model, answered soon also by a slow one."""
    body = json.dumps(
        {
            "model": served_name,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": _CURL_MAX_TOKENS,
            "temperature": 0,  # a small model's likeliest answer is its best
        }
    )
    key = ' -H "Authorization: Bearer $API_KEY"' if needs_key else ""
    return (
        f"curl {base_url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"
    )


def _changed_at(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None

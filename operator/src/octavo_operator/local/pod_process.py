"""One pod: its process started, probed, restarted with back-off, drained; its status kept true."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from octavo_operator.address import Address
from octavo_operator.errors import LocalError, WorkerFailedError
from octavo_operator.labels import WORKER_CONTAINER
from octavo_operator.local.addresses import AddressPool
from octavo_operator.local.container import Machine, local_container, worker_of
from octavo_operator.local.probe import is_well
from octavo_operator.local.worker_process import WorkerProcess
from octavo_operator.manifests.worker_command import ADMIN_PORT, WORKER_PORT
from octavo_operator.reconcile.conditions import timestamp

FIRST_BACKOFF_S: Final = 1.0
LONGEST_BACKOFF_S: Final = 60.0
STARTUP_POLL_S: Final = 0.2
READINESS_POLL_S: Final = 1.0


ConfigMaps: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Mapping[str, str]]]]
"""The ConfigMaps that a pod mounts and that are there, as they are now, by name."""


@dataclass(frozen=True, slots=True)
class PodEvents:
    """What a pod tells the outside; each callable gets the pod's name first.

    status: a new `status` of the pod. line: a log line, and whether it will be overwritten.
    failed: the worker ended though nobody asked it to.
    """

    status: Callable[[str, dict[str, Any]], None]
    line: Callable[[str, str, bool], None]
    failed: Callable[[str, WorkerFailedError], None]


class PodProcess:
    """Runs `pod` until `stop` is called. `address` is set while it runs."""

    def __init__(
        self,
        pod: Mapping[str, Any],
        machine: Machine,
        addresses: AddressPool,
        events: PodEvents,
        config_maps: ConfigMaps,
    ) -> None:
        self.name: str = pod["metadata"]["name"]
        self._pod = pod
        self._machine = machine
        self._addresses = addresses
        self._events = events
        self._config_maps = config_maps
        self._stopping = asyncio.Event()
        self._process: WorkerProcess | None = None
        self._restarts = 0
        self._last_exit: dict[str, Any] | None = None
        self._ready_since: str | None = None
        self._has_started = False
        self._scheduled_at = timestamp(datetime.now(UTC))
        self.address: Address | None = None
        self.was_ready = False

    def stop(self) -> None:
        """Drain and end."""
        self._stopping.set()

    def kill(self) -> None:
        """End at once, whatever is in flight."""
        self.stop()
        if self._process is not None:
            self._process.kill()

    async def run(self) -> None:
        """Until stopped; leaves no process, no folder and no address behind."""
        folder = Path(tempfile.mkdtemp(prefix="octavo-pod-"))
        self.address = self._addresses.take(WORKER_PORT, ADMIN_PORT)
        try:
            (folder / "tmp").mkdir()
            while not self._stopping.is_set():
                self._report("Running", {"running": {"startedAt": timestamp(datetime.now(UTC))}})
                reason = await self._run_container_or_say_why(folder)
                if not self._stopping.is_set():
                    await self._back_off(*reason)
        finally:
            self._addresses.give_back(self.address)
            self.address = None
            shutil.rmtree(folder, ignore_errors=True)

    async def _run_container_or_say_why(self, folder: Path) -> tuple[str, str]:
        """Why it is not running any more: a reason of kubelet's, and what more is known."""
        try:
            await self._run_container(folder)
        except LocalError as error:
            failure = error if isinstance(error, WorkerFailedError) else None
            self._events.failed(self.name, failure or WorkerFailedError(str(error)))
            return "CreateContainerConfigError", str(error)
        return "CrashLoopBackOff", ""

    async def _run_container(self, folder: Path) -> None:
        assert self.address is not None
        config_maps = await self._config_maps(self._pod)
        container = local_container(self._pod, self.address, folder, self._machine, config_maps)
        process = await WorkerProcess.start(container, self._on_line)
        self._process = process
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        probing = asyncio.create_task(self._probe())
        try:
            await asyncio.wait({ended, stopping, probing}, return_when=asyncio.FIRST_COMPLETED)
            probing.cancel()
            if ended.done():
                self._note_exit(ended.result(), process)
            elif stopping.done():
                await self._drain(process)
            else:
                await process.stop(self._grace_s)
                self._note_failed_probe(probing.result(), process)
        finally:
            for task in (stopping, probing):
                task.cancel()
            # Also on the way out after a cancellation: the process must not outlive this task.
            process.kill()
            await ended
            self._process = None

    async def _probe(self) -> str:
        """Keeps the pod's readiness true; returns which probe wants the container restarted."""
        assert self.address is not None
        container = worker_of(self._pod)
        startup, readiness = container["startupProbe"], container["readinessProbe"]
        patience_s = startup["periodSeconds"] * startup["failureThreshold"]
        deadline = time.monotonic() + patience_s
        while not await is_well(startup, self.address):
            if time.monotonic() > deadline:
                return f"the startup probe failed for {patience_s} s"
            await asyncio.sleep(min(startup["periodSeconds"], STARTUP_POLL_S))
        self._has_started = True
        self._report_running(is_ready=False)
        liveness_failed = asyncio.create_task(self._watch_liveness(container["livenessProbe"]))
        try:
            failures, is_ready = 0, False
            while not liveness_failed.done():
                failures = 0 if await is_well(readiness, self.address) else failures + 1
                if failures == 0 and not is_ready:
                    is_ready = True
                    self._report_running(is_ready=True)
                elif failures >= readiness["failureThreshold"] and is_ready:
                    is_ready = False
                    self._report_running(is_ready=False)
                await asyncio.wait(
                    {liveness_failed}, timeout=min(readiness["periodSeconds"], READINESS_POLL_S)
                )
            return liveness_failed.result()
        finally:
            liveness_failed.cancel()

    async def _watch_liveness(self, liveness: Mapping[str, Any]) -> str:
        assert self.address is not None
        failures = 0
        while failures < liveness["failureThreshold"]:
            await asyncio.sleep(liveness["periodSeconds"])
            failures = 0 if await is_well(liveness, self.address) else failures + 1
        return f"the liveness probe failed {failures} times"

    async def _drain(self, process: WorkerProcess) -> None:
        self._report_running(is_ready=False)
        await process.stop(self._grace_s)

    @property
    def _grace_s(self) -> float:
        return float(self._pod["spec"].get("terminationGracePeriodSeconds", 30))

    def _note_exit(self, code: int, process: WorkerProcess) -> None:
        what = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._note_end(code, what, process)

    def _note_failed_probe(self, probe: str, process: WorkerProcess) -> None:
        self._note_end(137, f"was stopped, since {probe}", process)

    def _note_end(self, code: int, what: str, process: WorkerProcess) -> None:
        self._has_started = False
        lines = tuple(process.last_lines)
        self._last_exit = {"exitCode": code, "message": "\n".join(lines[-10:])}
        self._events.failed(
            self.name, WorkerFailedError(f"the worker of pod {self.name} {what}", lines)
        )

    async def _back_off(self, reason: str, detail: str) -> None:
        delay_s = min(FIRST_BACKOFF_S * 2 ** min(self._restarts, 10), LONGEST_BACKOFF_S)
        self._restarts += 1
        message = detail or f"restarting in {delay_s:.0f} s"
        self._report("Running", {"waiting": {"reason": reason, "message": message}})
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({stopping}, timeout=delay_s)
        stopping.cancel()

    def _on_line(self, text: str, is_transient: bool) -> None:
        self._events.line(self.name, text, is_transient)

    def _report_running(self, *, is_ready: bool) -> None:
        self._report("Running", {"running": {}}, is_ready=is_ready)

    def _report(self, phase: str, state: dict[str, Any], *, is_ready: bool = False) -> None:
        assert self.address is not None
        container: dict[str, Any] = {
            "name": WORKER_CONTAINER,
            "containerID": f"process://{self.name}/{self._restarts}",
            "ready": is_ready,
            "started": self._has_started,
            "restartCount": self._restarts,
            "state": state,
        }
        if self._last_exit is not None:
            container["lastState"] = {"terminated": self._last_exit}
        now = timestamp(datetime.now(UTC))
        self._ready_since = (self._ready_since or now) if is_ready else None
        placed = {
            "type": "PodScheduled",
            "status": "True",
            "lastTransitionTime": self._scheduled_at,
        }
        self.was_ready |= is_ready
        ready = [
            {
                "type": kind,
                "status": "True" if is_ready else "False",
                "lastTransitionTime": self._ready_since or now,
            }
            for kind in ("ContainersReady", "Ready")
        ]
        self._events.status(
            self.name,
            {
                "phase": phase,
                "podIP": self.address.host,
                "conditions": [placed, *ready],
                "containerStatuses": [container],
            },
        )

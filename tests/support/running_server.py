"""A real server on a free port, in this event loop, in front of a fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fake_engine import FakeEngine
from octavo.config import ServerConfig
from octavo.engine.interface import LoadProgress
from octavo.server.lifecycle import Lifecycle
from octavo.server.listening import base_url, open_listener


class RecordingListener:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.ready_models: list[str] = []
        self.drained_with: list[int] = []
        self.is_ready = asyncio.Event()

    def loading(self, progress: LoadProgress) -> None:
        self.phases.append(progress.phase)

    def ready(self, model: str) -> None:
        self.ready_models.append(model)
        self.is_ready.set()

    def draining(self, num_open: int, timeout_s: float) -> None:
        self.drained_with.append(num_open)


@dataclass
class RunningServer:
    """A lifecycle under way; ``task`` ends with its exit status."""

    url: str
    engine: FakeEngine
    listener: RecordingListener
    lifecycle: Lifecycle
    task: asyncio.Task[int]
    admin_url: str = ""

    async def stop(self) -> int:
        self.lifecycle.stop()
        return await self.task


@asynccontextmanager
async def running_server(
    engine: FakeEngine, config: ServerConfig | None = None
) -> AsyncIterator[RunningServer]:
    """Listening when entered, stopped when left; on a free admin port too if `config` has one."""
    listener = RecordingListener()
    socket = open_listener("127.0.0.1", 0)
    config = config or ServerConfig(shutdown_timeout_s=5.0)
    admin = open_listener("127.0.0.1", 0) if config.admin_port is not None else None
    await engine.start()
    lifecycle = Lifecycle(engine, config, listener)
    task = asyncio.create_task(lifecycle.run(socket, admin))
    admin_url = base_url(admin) if admin is not None else ""
    server = RunningServer(base_url(socket), engine, listener, lifecycle, task, admin_url)
    try:
        yield server
    finally:
        engine.gate.set()
        if not task.done():
            await server.stop()

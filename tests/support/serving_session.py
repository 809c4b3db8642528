"""Sessions of local mode: with workers as told, or with real ones."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from octavo_operator.local.addresses import AddressPool
from octavo_operator.local.container import Machine
from octavo_operator.local.progress import Progress
from octavo_operator.local.resource_file import read_resource_file
from octavo_operator.local.session import LocalOptions, LocalSession

# An address that is free when a pod is made may be taken by another test process's pod before the
# worker listens there; so each process has a network of its own (and commands have the usual one).
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
AddressPool.__init__.__defaults__ = (f"127.{43 + _WORKER % 200}.0",)


def session_of_real_workers(
    folder: Path, log: io.StringIO, *resources: Mapping[str, Any]
) -> LocalSession:
    """A session, not yet running, whose pods are processes of the worker that is installed here.

    The resources' file and the pods' downloads are in `folder`.
    """
    path = folder / "service.yaml"
    path.write_text(yaml.safe_dump_all(resources), encoding="utf-8")
    content = read_resource_file(path)
    machine = Machine(
        programs={"octavo": (sys.executable, "-m", "octavo")},
        environment=dict(os.environ),
        cache_folder=folder / "cache",
        secrets=content.secrets,
    )
    options = LocalOptions(path, content, "127.0.0.1", 0, machine)
    return LocalSession(options, Progress(log, is_terminal=False))


@asynccontextmanager
async def serving(chosen: LocalOptions, log: io.StringIO) -> AsyncIterator[LocalSession]:
    """A session that serves; it is stopped, and what it leaves behind is looked at, at the end."""
    ready = asyncio.Event()
    session = LocalSession(chosen, Progress(log, is_terminal=False), lambda url: ready.set())
    running = asyncio.create_task(session.run())
    waiting = asyncio.create_task(ready.wait())
    async with asyncio.timeout(30):
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if running.done():
        running.result()
    try:
        yield session
    finally:
        session.stop()
        async with asyncio.timeout(30):
            await running

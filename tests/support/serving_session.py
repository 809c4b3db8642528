"""A local session that serves, for as long as a block of a test."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from octavo_operator.local.progress import Progress
from octavo_operator.local.session import LocalOptions, LocalSession


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

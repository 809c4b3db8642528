"""kopf in a thread of its own, with an event loop of its own.

When kopf stops, it waits for and then cancels every task of its loop, whoever started it; in one
loop with our informers, each would keep the other from ending. The thread hands over names only.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kopf

from octavo_operator.settings import OperatorSettings


async def run_kopf(
    registry: kopf.OperatorRegistry,
    kopf_settings: kopf.OperatorSettings,
    settings: OperatorSettings,
    stop_flag: asyncio.Event,
) -> None:
    """Until `stop_flag`, or until kopf itself ends; then waits for its thread."""
    thread_flag = threading.Event()
    port = settings.probe_port

    def run() -> None:
        asyncio.run(
            kopf.operator(
                registry=registry,
                settings=kopf_settings,
                standalone=True,
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
                liveness_endpoint=f"http://0.0.0.0:{port}/healthz" if port else None,
                stop_flag=thread_flag,
            )
        )

    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kopf")
    running: asyncio.Future[None] = asyncio.get_running_loop().run_in_executor(executor, run)
    stopping: asyncio.Future[bool] = asyncio.create_task(stop_flag.wait())
    waited: set[asyncio.Future[Any]] = {running, stopping}
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        thread_flag.set()
        stopping.cancel()
        await running
        executor.shutdown()

"""kopf in a thread of its own, with an event loop of its own.

When kopf stops, it waits for and then cancels every task of its loop, whoever started it; in one
loop with our informers, each would keep the other from ending. The thread hands over names only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import kopf
from kopf._cogs.clients import api as kopf_api

from octavo_operator.errors import KindsGoneError
from octavo_operator.json_text import read_json
from octavo_operator.settings import OperatorSettings

STOP_PATIENCE_S: Final = 5.0
"""It stops within a second where nothing goes wrong."""


async def run_kopf(
    registry: kopf.OperatorRegistry,
    kopf_settings: kopf.OperatorSettings,
    settings: OperatorSettings,
    stop_flag: asyncio.Event,
) -> None:
    """Until `stop_flag`, or until kopf itself ends; then waits for its thread.

    Raises KindsGoneError where kopf ends because one of our kinds is not served any more: without
    the right to follow CustomResourceDefinitions, it is told by nobody but its own watches.
    """
    thread_flag = threading.Event()
    port = settings.probe_port
    mains: list[asyncio.Task[Any] | None] = []
    _tell_failures_once()
    _read_json_as_ours()

    async def serve() -> None:
        mains.append(asyncio.current_task())
        try:
            await kopf.operator(
                registry=registry,
                settings=kopf_settings,
                standalone=True,
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
                liveness_endpoint=f"http://0.0.0.0:{port}/healthz" if port else None,
                stop_flag=thread_flag,
            )
        except Exception as error:
            if getattr(error, "status", None) == 404:
                raise KindsGoneError from error
            raise
        finally:
            # One of the loop's own threads waits for it, and the loop for that thread.
            thread_flag.set()

    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kopf")
    running: asyncio.Future[None] = asyncio.get_running_loop().run_in_executor(
        executor, lambda: asyncio.run(serve())
    )
    stopping: asyncio.Future[bool] = asyncio.create_task(stop_flag.wait())
    waited: set[asyncio.Future[Any]] = {running, stopping}
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        thread_flag.set()
        stopping.cancel()
        await _insist(running, mains)
        executor.shutdown()


async def _insist(running: asyncio.Future[None], mains: Sequence[asyncio.Task[Any] | None]) -> None:
    """Until kopf has stopped, whose own task is in `mains` once it has begun.

    It may lose a cancellation, as where a watch fails while another begins, and would then wait for
    that task for ever; to be cancelled twice harms none.
    """
    while not running.done():
        await asyncio.wait({running}, timeout=STOP_PATIENCE_S)
        for main in mains:
            if main is not None and not running.done():
                with contextlib.suppress(RuntimeError):  # its loop is closed
                    main.get_loop().call_soon_threadsafe(_cancel_all_but, main)
    await running


def _cancel_all_but(main: asyncio.Task[Any]) -> None:
    for task in asyncio.all_tasks() - {main}:
        task.cancel()


def _read_json_as_ours() -> None:
    """kopf has no setting for it, and ends with the first thing that it cannot read."""
    vars(kopf_api)["json"] = SimpleNamespace(loads=read_json)  # of events
    assert aiohttp.ClientResponse.json.__kwdefaults__ is not None
    aiohttp.ClientResponse.json.__kwdefaults__["loads"] = read_json  # of lists


def _tell_failures_once() -> None:
    """What ends kopf is raised, so the tracebacks on its way there say nothing new; and what fails
    for long, as all calls to a namespace that is gone, fails alike each time."""
    for name in ("orchestration", "running"):
        logging.getLogger(f"kopf._core.reactor.{name}").addFilter(_without_traceback)
    logging.getLogger("kopf._cogs.clients.watching").addFilter(_is_no_repetition)


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


def _is_no_repetition(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return "will retry" not in text or "attempt #1 " in text

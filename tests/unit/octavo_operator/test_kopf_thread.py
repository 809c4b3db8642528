"""kopf in a thread: that it ends when it is told to."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import kopf
import pytest

from octavo_operator.handlers import kopf_thread
from octavo_operator.handlers.kopf_thread import run_kopf
from octavo_operator.settings import OperatorSettings


async def test_cancellation_that_kopf_loses_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()

    async def wait_while_needed() -> None:
        while not is_over.is_set():
            await asyncio.sleep(0.01)

    async def lose_one() -> None:
        try:
            await wait_while_needed()
        except asyncio.CancelledError:
            await wait_while_needed()

    async def operator(*, stop_flag: threading.Event, **_: Any) -> None:
        task = asyncio.create_task(lose_one())
        await asyncio.sleep(0)
        await asyncio.to_thread(stop_flag.wait)
        task.cancel()
        await asyncio.wait({task})

    monkeypatch.setattr(kopf, "operator", operator)
    monkeypatch.setattr(kopf_thread, "STOP_PATIENCE_S", 0.05)
    stop_flag = asyncio.Event()
    registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    running = asyncio.create_task(run_kopf(registry, settings, OperatorSettings(), stop_flag))
    await asyncio.sleep(0.05)
    stop_flag.set()
    try:
        done, _ = await asyncio.wait({running}, timeout=10.0)
        assert done == {running}
    finally:
        is_over.set()
        await running

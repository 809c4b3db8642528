"""Waiting for a state instead of for a time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

LIMIT_S = 30.0
"""Only ends a test that would never end; no test is judged by its speed."""


async def eventually(check: Callable[[], bool | Awaitable[bool]]) -> None:
    """Until `check`, plain or async, says yes; TimeoutError when it never does."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            answer = check()
            if await answer if inspect.isawaitable(answer) else answer:
                return
            await asyncio.sleep(0.02)

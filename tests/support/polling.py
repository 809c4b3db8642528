"""Waiting for something that tells nobody when it happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_POLL_S = 0.005
_LIMIT_S = 30.0


async def until(condition: Callable[[], object]) -> None:
    """Return when ``condition`` holds; a test that waits for too long fails."""
    async with asyncio.timeout(_LIMIT_S):
        while not condition():
            await asyncio.sleep(_POLL_S)

"""One HTTP probe, as kubelet does it: a GET, and 200 to 399 is well."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from octavo_operator.local.addresses import Address


async def is_well(probe: Mapping[str, Any], address: Address) -> bool:
    """Whether the probe's `httpGet` succeeds within its timeout."""
    path = probe["httpGet"]["path"]
    try:
        async with asyncio.timeout(probe.get("timeoutSeconds", 1)):
            status = await _get_status(address, path)
    except (OSError, TimeoutError, ValueError):
        return False
    return 200 <= status < 400


async def _get_status(address: Address, path: str) -> int:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        request = f"GET {path} HTTP/1.1\r\nHost: {address.host}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        await writer.drain()
        status_line = await reader.readline()
        return int(status_line.split()[1]) if b" " in status_line else 0
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

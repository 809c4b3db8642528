"""One HTTP probe, as kubelet does it: a GET, and 200 to 399 is well."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from octavo_operator.address import Address
from octavo_operator.worker_client import call


async def is_well(probe: Mapping[str, Any], address: Address) -> bool:
    """Whether the probe's `httpGet` succeeds within its timeout."""
    path = probe["httpGet"]["path"]
    try:
        async with asyncio.timeout(probe.get("timeoutSeconds", 1)):
            status, _ = await call(address.host, address.port, "GET", path)
    except (OSError, TimeoutError, ValueError):
        return False
    return 200 <= status < 400

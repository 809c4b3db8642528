"""Holding calls in local mode: the proxy stands before the pods anyway, and only has to wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from octavo_operator.address import Address
from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.holding_proxy import HoldingProxy

HOLD_S: Final = 120.0


class ProxyHolder:
    """A `CallHolder` for the one service of local mode."""

    def __init__(self, host: str, proxy: Callable[[], HoldingProxy]) -> None:
        self._host = host
        self._proxy = proxy

    async def open(self, service: ServiceKey) -> Address | None:
        proxy = self._proxy()
        proxy.hold_s = HOLD_S
        return Address(self._host, proxy.port)

    async def close(self, service: ServiceKey) -> None:
        self._proxy().hold_s = 0.0

    async def close_all(self) -> None:
        """The session ends the proxy itself."""

    def num_held(self, service: ServiceKey) -> int:
        return self._proxy().num_held

"""Holds the calls of services that have no pods, one listening port a service.

The ports are how a call tells which service it is for: whatever name it came by, the EndpointSlice
of that service has led it here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from octavo_operator.address import Address
from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.errors import LocalError
from octavo_operator.holding_proxy import HoldingProxy
from octavo_operator.manifests.worker_command import WORKER_PORT
from octavo_operator.reconcile.live_object import LiveObject, is_ready_pod

logger = logging.getLogger(__name__)


class CallHolder(Protocol):
    """Who holds calls of services without pods."""

    async def open(self, service: ServiceKey) -> Address | None:
        """Where calls for `service` go, from now on; None when there is no room."""
        ...

    async def close(self, service: ServiceKey) -> None:
        """Hold no more calls for `service`; those there go on to the end."""
        ...

    async def close_all(self) -> None:
        """Hold no calls any more; those there are dropped."""
        ...

    def num_held(self, service: ServiceKey) -> int:
        """Calls that wait for a pod of `service`."""
        ...


class Activator:
    """A `CallHolder` in the operator's process, reached at the operator's own pod IP.

    pods: the worker pods of a service. on_call: told when a call begins to wait. ports: those that
    may be listened on; empty means any free one.
    """

    def __init__(
        self,
        pod_ip: str,
        ports: range,
        hold_s: float,
        pods: Callable[[ServiceKey], tuple[LiveObject, ...]],
        on_call: Callable[[ServiceKey], None],
    ) -> None:
        self._pod_ip = pod_ip
        self._ports = ports
        self._hold_s = hold_s
        self._pods = pods
        self._on_call = on_call
        self._proxies: dict[ServiceKey, HoldingProxy] = {}
        self._closed: list[HoldingProxy] = []
        """Those that take no more connections, and still have some."""

    async def open(self, service: ServiceKey) -> Address | None:
        proxy = self._proxies.get(service) or await self._listen(service)
        if proxy is None:
            logger.warning("%s/%s: no port is left to hold its calls on", *service)
            return None
        self._proxies[service] = proxy
        return Address(self._pod_ip, proxy.port)

    async def close(self, service: ServiceKey) -> None:
        proxy = self._proxies.pop(service, None)
        if proxy is not None:
            proxy.close()
            self._closed.append(proxy)
        self._closed = [one for one in self._closed if one.has_connections]

    async def close_all(self) -> None:
        for service in list(self._proxies):
            await self.close(service)
        for proxy in self._closed:
            await proxy.finish()
        self._closed.clear()

    def num_held(self, service: ServiceKey) -> int:
        proxy = self._proxies.get(service)
        return proxy.num_held if proxy is not None else 0

    async def _listen(self, service: ServiceKey) -> HoldingProxy | None:
        taken = {proxy.port for proxy in self._proxies.values()}
        for port in self._ports or (0,):
            if port in taken:
                continue
            proxy = HoldingProxy(
                self._pod_ip,
                port,
                lambda: ready_addresses(self._pods(service)),
                hold_s=self._hold_s,
                on_call=lambda: self._on_call(service),
            )
            try:
                await proxy.start()
            except LocalError:
                continue
            return proxy
        return None


def ready_addresses(pods: tuple[LiveObject, ...]) -> tuple[Address, ...]:
    """Where those of `pods` listen that can serve."""
    return tuple(
        Address(str(pod["status"]["podIP"]), WORKER_PORT) for pod in pods if can_serve(pod)
    )


def can_serve(pod: LiveObject) -> bool:
    """Whether `pod` is ready, has an address, and is not on its way out."""
    return is_ready_pod(pod) and bool(pod["status"].get("podIP"))

"""One operator at a time: a Lease that the leader renews, and others take when it does not.

Time is compared on one's own clock only: a Lease counts as given up when it has not changed for its
duration while one was looking, so clocks of different nodes need not agree. Source: the design of
client-go's leaderelection package.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from octavo_operator.cluster.interface import Cluster
from octavo_operator.errors import ClusterError, ConflictError, LeaseLostError, NotFoundError
from octavo_operator.manifests.kinds import LEASE

logger = logging.getLogger(__name__)

DURATION_S: Final = 15
RENEW_DEADLINE_S: Final = 10.0
"""The leader stops before others may take over."""

RENEW_PERIOD_S: Final = 2.0


class LeaderLease:
    """The Lease `name` in `namespace`, asked for as `identity`."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._sleep = sleep
        self._seen: tuple[object, ...] = ()
        self._seen_at_s = 0.0
        self._mine: Mapping[str, Any] | None = None
        """The Lease as this operator wrote it last."""

        self._renewed_at_s = 0.0
        """Before that was sent: others count from when it reached the server."""

    async def acquire(self) -> None:
        """Until this is the leader; failures of the API are waited out."""
        is_told = False
        while True:
            try:
                if await self._try_take():
                    logger.info("%s leads (lease %s/%s)", *self._names())
                    return
            except ClusterError as error:
                logger.warning("lease cannot be asked for: %s", error)
            if not is_told:
                logger.info("%s stands by (lease %s/%s)", *self._names())
                is_told = True
            await self._sleep(RENEW_PERIOD_S)

    async def keep(self) -> None:
        """Renew for as long as it goes; raises LeaseLostError when another may lead by now."""
        while True:
            await self._sleep(RENEW_PERIOD_S)
            left_s = self._renewed_at_s + RENEW_DEADLINE_S - self._clock()
            if left_s <= 0:
                raise LeaseLostError(
                    f"lease {self._name} could not be renewed for {RENEW_DEADLINE_S:.0f} s"
                )
            try:
                async with asyncio.timeout(left_s):
                    is_kept = await self._try_take()
            except (ClusterError, TimeoutError) as error:
                logger.warning("lease cannot be renewed: %s", str(error) or "no answer in time")
                continue
            if not is_kept:
                raise LeaseLostError(f"lease {self._name} was taken by another operator")

    async def release(self) -> None:
        """Let the next one lead at once; does nothing when this is not the leader."""
        try:
            live = await self._cluster.get(LEASE, self._namespace, self._name)
            if live["spec"].get("holderIdentity") == self._identity:
                await self._cluster.update(self._renewed(live, ""))
        except ClusterError as error:
            logger.info("lease is left to run out: %s", error)

    def _names(self) -> tuple[str, str, str]:
        return self._identity, self._namespace, self._name

    async def _try_take(self) -> bool:
        asked_at_s = self._clock()
        # While nobody else writes, what was written last is what there is; if not, it is read.
        mine, self._mine = self._mine, None
        is_taken = mine is not None and await self._write(
            self._cluster.update, self._renewed(mine, self._identity)
        )
        if not is_taken and not await self._read_and_take():
            return False
        self._renewed_at_s = asked_at_s
        return True

    async def _read_and_take(self) -> bool:
        try:
            live = await self._cluster.get(LEASE, self._namespace, self._name)
        except NotFoundError:
            return await self._write(self._cluster.create, self._fresh())
        if not self._may_take(live["spec"]):
            return False
        return await self._write(self._cluster.update, self._renewed(live, self._identity))

    def _may_take(self, spec: Mapping[str, Any]) -> bool:
        holder = spec.get("holderIdentity") or ""
        if holder in ("", self._identity):
            return True
        seen = (holder, spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at_s = seen, self._clock()
        return self._clock() - self._seen_at_s > (spec.get("leaseDurationSeconds") or DURATION_S)

    async def _write(
        self,
        write: Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]],
        manifest: Mapping[str, Any],
    ) -> bool:
        try:
            self._mine = await write(manifest)
        except ConflictError:
            return False
        return True

    def _fresh(self) -> dict[str, Any]:
        now = _micro_time()
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": DURATION_S,
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 0,
            },
        }

    def _renewed(self, live: Mapping[str, Any], holder: str) -> dict[str, Any]:
        now, spec = _micro_time(), dict(live["spec"])
        if spec.get("holderIdentity") != holder:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = (spec.get("leaseTransitions") or 0) + 1
        spec |= {
            "holderIdentity": holder,
            "leaseDurationSeconds": DURATION_S,
            "renewTime": now,
        }
        metadata = {key: live["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": metadata,
            "spec": spec,
        }


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

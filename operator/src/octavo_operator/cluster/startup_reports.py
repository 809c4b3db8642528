"""What workers say of their start: asked once a pod, remembered, and not insisted on.

A worker that cannot be reached (a network policy, a pod that is just going) must not hold up the
pass over its service again and again, so a failure is remembered for a while too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Final

from octavo_operator.cluster.admin_access import AdminAccess
from octavo_operator.errors import WorkerUnreachableError
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.reconcile.startup import latest_ready_pod
from octavo_operator.worker_client import WorkerClient, WorkerEndpoint

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 300.0
_KEPT: Final = 4096


class StartupReports:
    """Phases of starts, by pod uid."""

    def __init__(self, workers: WorkerClient, access: AdminAccess) -> None:
        self._workers = workers
        self._access = access
        self._known: dict[str, Mapping[str, float]] = {}
        self._silent_until_s: dict[str, float] = {}

    async def of(self, pods: Iterable[LiveObject]) -> dict[str, Mapping[str, float]]:
        """The report of the latest pod that is ready, asked for where it is not known yet."""
        pod = latest_ready_pod(pods)
        worker = self._access.endpoint(pod) if pod is not None else None
        if pod is None or worker is None:
            return {}
        uid = str(pod["metadata"].get("uid"))
        if uid not in self._known and self._silent_until_s.get(uid, 0.0) <= time.monotonic():
            await self._ask(uid, worker)
        return {uid: self._known[uid]} if uid in self._known else {}

    async def _ask(self, uid: str, worker: WorkerEndpoint) -> None:
        if len(self._known) + len(self._silent_until_s) > _KEPT:
            self._known.clear()
            self._silent_until_s.clear()
        try:
            self._known[uid] = await self._workers.startup_phases_s(worker)
            self._silent_until_s.pop(uid, None)
        except WorkerUnreachableError as error:
            logger.info("start of pod %s is not known: %s", uid, error)
            self._silent_until_s[uid] = time.monotonic() + PATIENCE_S

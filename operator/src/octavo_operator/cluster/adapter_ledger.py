"""Calls to workers about the adapters of one service: under way, bounded, and how they ended.

Nothing in it is needed to be right, only to be patient: after a restart of the operator every pod
is asked for its list, and what is missing is tried at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, Final, TypeAlias

from octavo_operator.errors import AdapterCallError
from octavo_operator.reconcile.adapter_facts import (
    Attempt,
    AttemptKey,
    Failure,
    failed_attempt,
    succeeded_attempt,
)
from octavo_operator.reconcile.adapter_standing import Load
from octavo_operator.reconcile.adapter_world import Place
from octavo_operator.reconcile.adapters import Unload
from octavo_operator.worker_adapters import load_adapter, unload_adapter
from octavo_operator.worker_client import WorkerClient, WorkerEndpoint

logger = logging.getLogger(__name__)

LOAD_LIMIT_S: Final = 180.0
"""One load, with its download."""

DRAIN_S: Final = 30.0
"""What requests of an adapter that is unloaded may still take."""

CALLS_PER_POD: Final = 8
"""So many that a few slow sources do not hold the others up."""

Found: TypeAlias = tuple[str | None, str | None]
"""Digest and revision of what was loaded, as far as the worker told."""

OnLoad = Callable[[float, str | None], None]
"""Told the seconds of each load, and the reason why it failed, None for success."""


class AdapterLedger:
    """`limit` bounds the calls of all services together; `on_done` is told when one has ended."""

    def __init__(
        self,
        workers: WorkerClient,
        limit: asyncio.Semaphore,
        on_load: OnLoad,
        on_done: Callable[[], None],
    ) -> None:
        self._workers = workers
        self._limit = limit
        self._on_load = on_load
        self._on_done = on_done
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._tasks: dict[Place, tuple[AttemptKey, asyncio.Task[None]]] = {}
        self._pod_limits: dict[str, asyncio.Semaphore] = {}

    @property
    def attempts(self) -> Mapping[AttemptKey, Attempt]:
        return dict(self._attempts)

    @property
    def busy(self) -> dict[Place, AttemptKey]:
        return {place: key for place, (key, _) in self._tasks.items()}

    def start_load(self, load: Load, worker: WorkerEndpoint) -> None:
        """Begin, unless something is under way for that name in that container."""
        self._start(load.key, self._load(load, worker))

    def start_unload(self, unload: Unload, worker: WorkerEndpoint) -> None:
        """Begin, unless something is under way for that name in that container."""
        self._start(unload.key, self._unload(unload, worker))

    def keep_only(self, keys: Collection[AttemptKey], pod_uids: Collection[str]) -> None:
        """Forget attempts other than those of `keys`, and all that concerns pods that are gone."""
        self._attempts = {key: self._attempts[key] for key in self._attempts if key in keys}
        for place, (_, task) in self._tasks.items():
            if place[0] not in pod_uids:
                task.cancel()
        for uid in [uid for uid in self._pod_limits if uid not in pod_uids]:
            del self._pod_limits[uid]

    async def close(self) -> None:
        """Let go of every call; workers finish what they have begun."""
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, key: AttemptKey, work: Coroutine[Any, Any, Found]) -> None:
        place = (key.pod_uid, key.container_id, key.name)
        if place in self._tasks:
            work.close()
            return
        task = asyncio.create_task(self._run(key, work), name=f"adapter {key.name}")
        self._tasks[place] = (key, task)
        task.add_done_callback(lambda _: self._end(place))

    def _end(self, place: Place) -> None:
        del self._tasks[place]
        self._on_done()

    async def _run(self, key: AttemptKey, work: Coroutine[Any, Any, Found]) -> None:
        pod_limit = self._pod_limits.setdefault(key.pod_uid, asyncio.Semaphore(CALLS_PER_POD))
        try:
            async with pod_limit, self._limit:
                digest, revision = await work
            before, now_s = self._attempts.get(key), time.monotonic()
            self._attempts[key] = succeeded_attempt(before, now_s, digest, revision)
        except AdapterCallError as error:
            failure = Failure(error.reason, str(error))
            now_s = time.monotonic()
            self._attempts[key] = failed_attempt(self._attempts.get(key), failure, now_s)
            logger.info("adapter %s in pod %s: %s", key.name, key.pod_uid, error)
        finally:
            work.close()

    async def _load(self, load: Load, worker: WorkerEndpoint) -> Found:
        started_s = time.monotonic()
        try:
            found = await load_adapter(self._workers, worker, load, LOAD_LIMIT_S)
        except AdapterCallError as error:
            self._on_load(time.monotonic() - started_s, error.reason)
            raise
        self._on_load(time.monotonic() - started_s, None)
        return found

    async def _unload(self, unload: Unload, worker: WorkerEndpoint) -> Found:
        await unload_adapter(self._workers, worker, unload.key.name, DRAIN_S)
        return None, None

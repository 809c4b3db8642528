"""Workers that hold adapters, in the test's own process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fake_adapter_table import AdapterTable, Answer, Sources
from octavo_operator.errors import WorkerUnreachableError
from octavo_operator.worker_client import WorkerClient, WorkerEndpoint


class FakeWorkers(WorkerClient):
    """The operator's way to workers that are in this process, by the pod's address.

    tables: by host; silent: hosts that do not answer. calls: by method and path; loads: every body
    of a load with its host, in order. most_open: most loads under way at a time, by host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sources = Sources()
        self.tables: dict[str, AdapterTable] = {}
        self.silent: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.loads: list[tuple[str, dict[str, Any]]] = []
        self.open: Counter[str] = Counter()
        self.most_open: Counter[str] = Counter()

    def table(self, host: str) -> AdapterTable:
        return self.tables.setdefault(host, AdapterTable(self.sources))

    async def ask(
        self,
        worker: WorkerEndpoint,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        is_open: bool = False,
        timeout_s: float | None = None,
        answer_limit: int = 0,
    ) -> Answer:
        host = worker.host
        self.calls[f"{method} {path}"] += 1
        await asyncio.sleep(0)
        if host in self.silent:
            raise WorkerUnreachableError(f"{method} {path} of {worker}: timed out")
        table = self.table(host)
        if path != "/v1/load_lora_adapter":
            return table.answer(method, path, body)
        assert body is not None
        self.loads.append((host, dict(body)))
        self.open[host] += 1
        self.most_open[host] = max(self.most_open[host], self.open[host])
        try:
            while table.is_hanging(body):
                await asyncio.sleep(0.002)
            await asyncio.sleep(0)
            # A container that was restarted meanwhile has another table.
            if self.tables.get(host) is not table or host in self.silent:
                raise WorkerUnreachableError(f"{method} {path} of {worker}: broken off")
            return table.answer(method, path, body)
        finally:
            self.open[host] -= 1

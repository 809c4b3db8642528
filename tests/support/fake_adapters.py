"""Workers that hold adapters, in memory: what a pod lists and loads, and how sources misbehave.

`AdapterTable` is one worker's; the fake worker process uses it over HTTP, `FakeWorkers` stands in
for the operator's client. The files of a source are what `Sources.contents` says, and their digest
follows from that, so that a source that moves is a change of one entry.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo_operator.errors import WorkerUnreachableError
from octavo_operator.worker_client import WorkerClient, WorkerEndpoint

Answer = tuple[int, dict[str, Any]]

REFUSALS = {
    "refused": (400, "adapter_refused", "rank is 64; this server takes at most 16"),
    "forbidden": (403, "adapter_forbidden", "the hub says 401"),
    "missing": (404, "adapter_not_found", "there is no such repository"),
    "unreachable": (503, "adapter_unreachable", "the hub does not answer"),
    "broken": (500, "adapter_failed", "a bug"),
}
"""What a source can be instead of files: a load of it fails so."""


def digest_of(content: str) -> str:
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def refusal(kind: str, message: str = "") -> Answer:
    status, code, usual = REFUSALS[kind]
    return status, {"error": {"code": code, "message": message or usual}}


@dataclass
class Sources:
    """contents: by path, text that stands for files, or a key of REFUSALS; a path that is not there
    is missing. hanging: paths whose loads do not end before they leave this set."""

    contents: dict[str, str] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)


class AdapterTable:
    """One worker's adapters."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self.entries: dict[str, dict[str, Any]] = {}
        self.generation = 0

    def listing(self) -> Answer:
        return 200, {"object": "list", "data": [dict(item) for item in self.entries.values()]}

    def load(self, body: Mapping[str, Any]) -> Answer:
        name, path = body["lora_name"], body["lora_path"]
        entry = self.entries.get(name)
        if body.get("digest") and entry is not None and entry["digest"] == body["digest"]:
            return 200, dict(entry)
        if body.get("lazy"):
            if entry is None or entry["digest"] is None:
                self._set(name, path, "known", None, None)
            return 200, dict(self.entries[name])
        content = self._sources.contents.get(path, "missing")
        if content in REFUSALS:
            return refusal(content)
        digest = digest_of(content)
        if body.get("digest") not in (None, digest):
            message = f"the files have {digest}, not {body['digest']}"
            return 409, {"error": {"code": "adapter_changed", "message": message}}
        if entry is None or entry["digest"] != digest:
            self.generation += 1
            commit = f"commit-{content}" if path.startswith("hf://") else None
            self._set(name, path, "ready", digest, commit)
        return 200, dict(self.entries[name])

    def unload(self, body: Mapping[str, Any]) -> Answer:
        if self.entries.pop(body["lora_name"], None) is None and not body.get("missing_ok"):
            return 404, {"error": {"code": "model_not_found", "message": "no such adapter"}}
        return 200, {"id": body["lora_name"], "state": "unloaded", "requests_ended": 0}

    def is_hanging(self, body: Mapping[str, Any]) -> bool:
        return body.get("lora_path") in self._sources.hanging

    def answer(self, method: str, path: str, body: Mapping[str, Any] | None) -> Answer:
        if (method, path) == ("GET", "/v1/adapters"):
            return self.listing()
        if (method, path) == ("POST", "/v1/load_lora_adapter"):
            return self.load(body or {})
        if (method, path) == ("POST", "/v1/unload_lora_adapter"):
            return self.unload(body or {})
        return 404, {"error": {"code": "not_found", "message": path}}

    def _set(
        self, name: str, path: str, state: str, digest: str | None, revision: str | None
    ) -> None:
        self.entries[name] = {
            "id": name,
            "name": name,
            "state": state,
            "path": path,
            "digest": digest,
            "revision": revision,
            "generation": self.generation,
            "message": None,
        }


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

"""One worker's adapters, for workers that serve no model: what it lists, loads and forgets.

Knows nothing of the operator: the fake worker is a process of its own. The files of a source are
what `Sources.contents` says, and their digest follows from that, so that a source that moves is a
change of one entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[int, dict[str, Any]]

REFUSALS = {
    "refused": (400, "adapter_refused", "rank is 64; this server takes at most 16."),
    "forbidden": (403, "adapter_forbidden", "the hub says 401"),
    "missing": (404, "adapter_not_found", "there is no such repository"),
    "unreachable": (503, "adapter_unreachable", "the hub does not answer"),
    "late": (503, "adapter_not_ready", "it was not loaded within 180 s"),
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

    contents: MutableMapping[str, str] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)


class AdapterTable:
    """One worker's adapters."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self.entries: dict[str, dict[str, Any]] = {}
        self.generation = 0
        self.is_held = True

    def listing(self) -> Answer:
        data = [dict(item) for item in self.entries.values()]
        return 200, {"object": "list", "data": data, "held": self.is_held}

    def want(self, wanted: Mapping[str, Any]) -> None:
        """As a new worker does with each entry of its list."""
        name, path = wanted["name"], wanted["path"]
        body = {**wanted, "lora_name": name, "lora_path": path}
        if self.load(body)[0] != 200:
            self._set(name, path, "failed", wanted.get("digest"), wanted.get("revision"))

    def load(self, body: Mapping[str, Any]) -> Answer:
        name, path = body["lora_name"], body["lora_path"]
        entry = self.entries.get(name)
        is_ready = entry is not None and entry["state"] == "ready"
        if is_ready and body.get("digest") and entry["digest"] == body["digest"]:
            return 200, dict(entry)
        if body.get("lazy") and not is_ready:
            self._set(name, path, "known", body.get("digest"), body.get("revision"))
            return 200, dict(self.entries[name])
        content = self._sources.contents.get(path, "missing")
        if content in REFUSALS:
            return refusal(content)
        digest = digest_of(content)
        if body.get("digest") not in (None, digest):
            message = f"the files have {digest}, not {body['digest']}"
            return 409, {"error": {"code": "adapter_changed", "message": message}}
        if not is_ready or entry["digest"] != digest:
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
        if (method, path) == ("POST", "/v1/adapters/complete"):
            was_held, self.is_held = self.is_held, False
            return 200, {"held": was_held}
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

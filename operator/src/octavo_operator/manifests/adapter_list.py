"""The ConfigMap that tells a new pod which adapters it shall have, so that it need not be told.

Its one file has the form of the worker's `--lora-state`. Pods mount it; a change of it restarts
none, and only a pod without a state of its own reads it, once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.manifests.worker_command import ADAPTER_LIST_KEY
from octavo_operator.resources.inference_service import InferenceService

SIZE_LIMIT: Final = 900_000
"""Bytes; an object holds a mebibyte. Of what does not fit a new pod is told by the operator."""

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class WantedAdapter:
    """One line of the list; `path` is where pods find it. No credential is ever in it."""

    name: str
    path: str
    revision: str | None
    digest: str
    is_lazy: bool


def adapter_list_name(service_name: str) -> str:
    return f"{service_name}-adapters"


def adapter_list(service: InferenceService, wanted: Iterable[WantedAdapter]) -> dict[str, Any]:
    """The whole ConfigMap; those that come first are in it, if not all are."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**child_metadata(service), "name": adapter_list_name(service.name)},
        "data": {ADAPTER_LIST_KEY: _document(wanted)},
    }


def _document(wanted: Iterable[WantedAdapter]) -> str:
    """A line an adapter, so that it can be read and compared."""
    lines, size = [], 0
    for adapter in wanted:
        line = json.dumps(_entry(adapter), separators=(",", ":"))
        size += len(line) + 2
        if size > SIZE_LIMIT:
            break
        lines.append(line)
    return f'{{"version":{_VERSION},"adapters":[\n' + ",\n".join(lines) + "\n]}\n"


def _entry(adapter: WantedAdapter) -> Mapping[str, Any]:
    entry = {
        "name": adapter.name,
        "path": adapter.path,
        "revision": adapter.revision,
        "digest": adapter.digest,
    }
    given = {key: value for key, value in entry.items() if value is not None}
    return {**given, "lazy": True} if adapter.is_lazy else given

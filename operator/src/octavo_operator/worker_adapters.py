"""What a worker is asked about adapters: which it has, to load one, to forget one, to serve.

Knows the bodies and codes of the worker's admin routes, and turns refusals into stable reasons;
how a worker is reached is `worker_client`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from octavo_operator.errors import AdapterCallError, WorkerUnreachableError
from octavo_operator.reconcile.adapter_facts import ListedAdapter
from octavo_operator.reconcile.adapter_standing import Load
from octavo_operator.worker_client import WorkerClient, WorkerEndpoint

LIST_LIMIT_S: Final = 5.0
_LIST_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""Some 30,000 adapters at half a KiB each. Read, they take several times as much of the operator's
memory, which has room for little more."""

_MARGIN_S: Final = 5.0
"""What a worker may take to say that the time it was given is over."""

_REASONS: Final[Mapping[tuple[int, str], str]] = {
    (400, "adapter_refused"): "AdapterRefused",
    (403, "adapter_forbidden"): "SourceForbidden",
    (404, "adapter_not_found"): "SourceNotFound",
    (409, "adapter_changed"): "SourceChanged",
    (503, "adapter_unreachable"): "SourceUnreachable",
    (503, "adapter_not_ready"): "LoadTimedOut",
}
_FALLBACK: Final = "LoadFailed"
_MESSAGE_LIMIT: Final = 1000
"""Characters of what a worker says; conditions hold 32768, of many pods together."""


async def list_adapters(
    workers: WorkerClient, worker: WorkerEndpoint
) -> tuple[dict[str, ListedAdapter], bool]:
    """By name, and whether the worker takes no traffic before it is told that none is missing.

    Raises WorkerUnreachableError. Versions that no name stands for any more, whose requests still
    run, count where nothing else has the name.
    """
    status, answer = await workers.ask(
        worker, "GET", "/v1/adapters", timeout_s=LIST_LIMIT_S, answer_limit=_LIST_LIMIT_BYTES
    )
    entries = answer.get("data")
    if status != 200 or not isinstance(entries, list):
        raise WorkerUnreachableError(f"GET /v1/adapters: HTTP {status}: {_message(answer)}")
    found: dict[str, ListedAdapter] = {}
    for entry in entries:
        listed = _listed(entry)
        if listed is None:
            raise WorkerUnreachableError(f"GET /v1/adapters: an entry is {str(entry)[:200]}")
        if listed.state != "draining" or listed.name not in found:
            found[listed.name] = listed
    return found, answer.get("held") is True


async def complete_adapters(workers: WorkerClient, worker: WorkerEndpoint) -> None:
    """Tell a worker that none is missing; raises WorkerUnreachableError."""
    path = "/v1/adapters/complete"
    status, answer = await workers.ask(worker, "POST", path, {}, timeout_s=LIST_LIMIT_S)
    if status != 200:
        raise WorkerUnreachableError(f"POST {path}: HTTP {status}: {_message(answer)}")


async def load_adapter(
    workers: WorkerClient, worker: WorkerEndpoint, load: Load, limit_s: float
) -> tuple[str | None, str | None]:
    """Digest and commit of what was loaded; raises AdapterCallError."""
    body = {
        "lora_name": load.key.name,
        "lora_path": load.path,
        "revision": load.revision,
        "digest": load.digest,
        "lazy": load.is_lazy,
        "timeout": limit_s,
    }
    given = {key: value for key, value in body.items() if value is not None}
    answer = await _order(workers, worker, "/v1/load_lora_adapter", given, limit_s)
    digest, revision = answer.get("digest"), answer.get("revision")
    if not (_is_text(digest) and _is_text(revision)):
        raise AdapterCallError(_FALLBACK, f"{worker} says it has loaded {str(digest)[:200]}")
    return digest, revision


async def unload_adapter(
    workers: WorkerClient, worker: WorkerEndpoint, name: str, drain_s: float
) -> None:
    """Until its requests have ended, or their time has; raises AdapterCallError."""
    body = {"lora_name": name, "timeout": drain_s, "missing_ok": True}
    await _order(workers, worker, "/v1/unload_lora_adapter", body, drain_s)


async def _order(
    workers: WorkerClient,
    worker: WorkerEndpoint,
    path: str,
    body: Mapping[str, Any],
    limit_s: float,
) -> dict[str, Any]:
    try:
        status, answer = await workers.ask(
            worker, "POST", path, body, timeout_s=limit_s + _MARGIN_S
        )
    except WorkerUnreachableError as error:
        raise AdapterCallError("PodUnreachable", str(error)) from error
    if status == 200:
        return answer
    complaint = answer.get("error")
    code = str(complaint.get("code")) if isinstance(complaint, Mapping) else ""
    reason = _REASONS.get((status, code), _FALLBACK)
    raise AdapterCallError(reason, _message(answer) or f"POST {path}: HTTP {status}")


def _listed(entry: object) -> ListedAdapter | None:
    """None for what is no adapter, as the contract has them."""
    if not isinstance(entry, Mapping):
        return None
    name, state = entry.get("name") or entry.get("id"), entry.get("state")
    path, message = entry.get("path"), entry.get("message")
    digest, revision = entry.get("digest"), entry.get("revision")
    if not (isinstance(name, str) and isinstance(state, str)):
        return None
    if not all(map(_is_text, (path, digest, revision, message))):
        return None
    return ListedAdapter(
        name, path or "", state, digest, revision, (message or "")[:_MESSAGE_LIMIT]
    )


def _is_text(told: object) -> bool:
    """Whether it is text, or left out."""
    return told is None or isinstance(told, str)


def _message(answer: Mapping[str, Any]) -> str:
    error = answer.get("error")
    return str(error.get("message", ""))[:_MESSAGE_LIMIT] if isinstance(error, Mapping) else ""

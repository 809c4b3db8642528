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


async def list_adapters(
    workers: WorkerClient, worker: WorkerEndpoint
) -> tuple[dict[str, ListedAdapter], bool]:
    """By name, and whether the worker takes no traffic before it is told that none is missing.

    Raises WorkerUnreachableError. Versions that no name stands for any more, whose requests still
    run, count where nothing else has the name.
    """
    status, answer = await workers.ask(worker, "GET", "/v1/adapters", timeout_s=LIST_LIMIT_S)
    entries = answer.get("data")
    if status != 200 or not isinstance(entries, list):
        raise WorkerUnreachableError(f"GET /v1/adapters: HTTP {status}: {_message(answer)}")
    found: dict[str, ListedAdapter] = {}
    for entry in entries:
        listed = _listed(entry)
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
    return answer.get("digest"), answer.get("revision")


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


def _listed(entry: Mapping[str, Any]) -> ListedAdapter:
    return ListedAdapter(
        name=str(entry.get("name") or entry.get("id")),
        path=str(entry.get("path") or ""),
        state=str(entry.get("state")),
        digest=entry.get("digest"),
        revision=entry.get("revision"),
        message=str(entry.get("message") or ""),
    )


def _message(answer: Mapping[str, Any]) -> str:
    error = answer.get("error")
    return str(error.get("message", "")) if isinstance(error, Mapping) else ""

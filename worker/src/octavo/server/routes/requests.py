"""For administrators: which requests there are, and the end of one that should not go on.

``GET /v1/requests`` and ``POST /v1/requests/{id}/cancel``. Nothing here tells what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from octavo.outputs import RequestState, RequestTimings
from octavo.server.context import ServerContext
from octavo.server.errors import ApiError
from octavo.server.json_response import json_response
from octavo.server.openapi import describe_answer
from octavo.server.requests import RequestRecord

_MAX_SHOWN = 10_000
_ORDER = ("waiting", "preempted", "prefill", "decode")
"""A request with several choices is in the state of the one that is furthest back."""


class RequestList(msgspec.Struct):
    """The answer to ``GET /v1/requests``."""

    open: list[dict[str, Any]]
    ended: list[dict[str, Any]]
    object: str = "list"


class RequestCancelled(msgspec.Struct):
    """The answer to ``POST /v1/requests/{id}/cancel``."""

    id: str
    num_cancelled: int
    object: str = "request.cancelled"


def build_router(context: ServerContext) -> APIRouter:
    """The routes, bound to ``context``; only administrators may reach them."""
    router = APIRouter()

    @router.get("/v1/requests", **describe_answer(RequestList))
    async def list_requests() -> Response:
        """Requests that are open, oldest first, and the last that ended, latest first."""
        states = await context.engine.inspect()
        ledger = context.ledger
        body = RequestList(
            [_open(record, states) for record in islice(ledger.open, _MAX_SHOWN)],
            [_ended(record) for record in ledger.ended],
        )
        return json_response(body)

    cancelled = describe_answer(RequestCancelled, 404)

    @router.post("/v1/requests/{request_id:path}/cancel", **cancelled)
    async def cancel_request(request_id: str) -> Response:
        """End every open request of this id. Its client gets what was generated."""
        found = [record for record in context.ledger.open if _is_named(record, request_id)]
        num_cancelled = sum(_cancel(context, record) for record in found)
        if not num_cancelled:
            raise ApiError(
                404,
                f"There is no running request {request_id[:128]!r}; GET /v1/requests lists them.",
                code="request_not_found",
                param="request_id",
            )
        body = RequestCancelled(request_id, num_cancelled)
        return json_response(body)

    return router


def _is_named(record: RequestRecord, request_id: str) -> bool:
    """By its X-Request-Id, or by the id in its answer."""
    kinds = ("", "chatcmpl-", "cmpl-", "resp_", "embd-")
    return request_id == record.id or request_id in (kind + record.answer_id for kind in kinds)


def _cancel(context: ServerContext, record: RequestRecord) -> bool:
    if record.cancel_wait():
        return True
    return record.engine_id is not None and context.engine.abort(record.engine_id)


def _open(record: RequestRecord, states: Mapping[str, RequestState]) -> dict[str, Any]:
    own = _states_of(record, states)
    # The engine has not heard of it yet, or does not answer: then nothing more is known.
    state = min((each.state for each in own), key=_ORDER.index, default="received")
    shown = _facts(record) | {"state": state}
    if own:
        shown |= {
            **RequestTimings.longest(each.timings for each in own).rounded(),
            "num_kv_blocks": sum(each.num_blocks for each in own),
            "num_preemptions": sum(each.num_preemptions for each in own),
        }
    return shown


def _states_of(record: RequestRecord, states: Mapping[str, RequestState]) -> list[RequestState]:
    id, prefix = record.engine_id, f"{record.engine_id}:"
    return [state for id_, state in states.items() if id_ == id or id_.startswith(prefix)]


def _ended(record: RequestRecord) -> dict[str, Any]:
    shown = _facts(record) | {
        "state": "ended",
        "outcome": record.outcome,
        "status": record.status,
        "code": record.code,
        "finish_reasons": record.finish_reasons,
    }
    if record.timings is not None:
        shown |= record.timings.rounded()
    return shown


def _facts(record: RequestRecord) -> dict[str, Any]:
    usage = record.usage
    return {
        "id": record.id,
        "path": record.path,
        "key": record.key,
        "model": record.model,
        "stream": record.stream,
        "priority": record.priority,
        "timeout_s": record.timeout_s,
        "num_choices": record.num_choices,
        "arrived": round(record.arrived_unix_s, 3),
        "age_s": round(record.age_s, 4),
        "prompt_tokens": 0 if usage is None else usage.prompt_tokens,
        "cached_tokens": 0 if usage is None else usage.cached_tokens,
        "completion_tokens": 0 if usage is None else usage.completion_tokens,
    }

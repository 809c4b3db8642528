"""The outermost layer: every request gets an id, every failure an answer, every one that asks for
work a record with exactly one end, if asked a log line, and where there is a collector a trace.

Knows HTTP only. A pure ASGI layer, so that streamed chunks pass through without a copy.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.logs import log_event
from octavo.server.auth import OPEN_PATHS
from octavo.server.context import ServerContext
from octavo.server.errors import headers_too_large, internal_error, left_behind
from octavo.server.limits import MAX_HEADER_BYTES
from octavo.server.requests import COUNTED_PATHS, RequestRecord

_logger = logging.getLogger("octavo.server")
_USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, version 00."""


def request_id_of(scope: Scope) -> str:
    """The id this layer gave the request."""
    request_id: str = scope["octavo.request_id"]
    return request_id


class RequestBoundary:
    """Takes over ``X-Request-Id`` or makes one, echoes it, and answers what nobody caught.

    While the server leaves, each answer asks the client to open its next connection elsewhere.
    """

    def __init__(self, app: ASGIApp, context: ServerContext) -> None:
        self._app = app
        self._context = context
        self._ledger = context.ledger
        self._log_requests = context.config.log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _header(scope["headers"], b"x-request-id", _USABLE_ID) or uuid.uuid4().hex
        scope["octavo.request_id"] = request_id
        with self._context.bodies.hold() as scope["octavo.body"]:
            await self._take(scope, receive, send, request_id)

    async def _take(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        """Answer it, and keep its account where it has one."""
        headers = scope["headers"]
        if scope["method"] != "POST" or scope["path"] not in COUNTED_PATHS:
            started_s = time.monotonic()
            status = await self._answer(scope, receive, send, request_id, None)
            if self._log_requests:
                self._log(scope, request_id, status, time.monotonic() - started_s)
            return
        record = RequestRecord(
            request_id, scope["path"], _header(headers, b"traceparent", _TRACEPARENT)
        )
        scope["octavo.record"] = record
        number = self._ledger.enter(record)
        try:
            await self._answer(scope, receive, send, request_id, record)
        finally:
            self._ledger.leave(number)
            if self._log_requests:
                self._log(scope, request_id, record.status, record.age_s, **_told(record))
            if self._context.tracer is not None:
                self._context.tracer.tell(record)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        request_id: str,
        record: RequestRecord | None,
    ) -> int:
        """Pass the request on; returns the status of its answer, 0 if none was begun."""
        status = 0
        id_header = (b"x-request-id", request_id.encode())

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if record is not None:
                    record.status = status
                headers = [*message.get("headers", ()), id_header]
                if self._context.is_leaving:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
                await headers_too_large().to_response()(scope, receive, send_with_id)
            else:
                await self._app(_as_get(scope), receive, send_with_id)
        except asyncio.CancelledError:
            # A server that ends cancels what it cannot wait for any longer.
            if status != 0 or not self._context.is_leaving:
                raise
            if record is not None:
                record.end_in_error(503, "engine_draining")
            await left_behind().to_response()(scope, receive, send_with_id)
        except Exception:
            _logger.exception("request failed id=%s path=%s", request_id, scope["path"])
            if record is not None:
                record.end_in_error(500, "internal_error")
            if status == 0:
                await internal_error().to_response()(scope, receive, send_with_id)
        return status

    def _log(
        self, scope: Scope, request_id: str, status: int, seconds: float, **more: object
    ) -> None:
        log_event(
            _logger,
            "request",
            # Probes and Prometheus ask all the time; their lines would hide the others.
            level=logging.DEBUG if scope["path"] in OPEN_PATHS else logging.INFO,
            id=request_id,
            method=scope["method"],
            path=scope["path"],
            status=status,
            seconds=round(seconds, 4),
            **more,
        )


def _as_get(scope: Scope) -> Scope:
    """HEAD is GET (RFC 9110, section 9.3.2); the protocol leaves the body out."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope


def _told(record: RequestRecord) -> dict[str, Any]:
    """What a log line tells of a request: numbers and names, nothing of what was asked."""
    fields: dict[str, Any] = {"outcome": str(record.outcome), "key": record.key}
    if record.code is not None:
        fields["code"] = record.code
    if record.usage is not None:
        fields["prompt_tokens"] = record.usage.prompt_tokens
        fields["completion_tokens"] = record.usage.completion_tokens
    if record.timings is not None:
        fields |= record.timings.rounded()
    if record.traceparent is not None:
        fields["traceparent"] = record.traceparent
    return fields


def _header(
    headers: list[tuple[bytes, bytes]], wanted: bytes, usable: re.Pattern[bytes]
) -> str | None:
    """The first of that name that can be used; any other is as good as nothing."""
    for name, value in headers:
        if name == wanted and usable.fullmatch(value):
            return bytes(value).decode("ascii")
    return None

"""The outermost layer: every request gets an id, every failure an answer, if asked a log line.

Knows HTTP only. A pure ASGI layer, so that streamed chunks pass through without a copy.
"""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.logs import log_event
from octavo.server.auth import OPEN_PATHS
from octavo.server.context import ServerContext
from octavo.server.errors import internal_error

_logger = logging.getLogger("octavo.server")
_ASKED_ALL_THE_TIME = OPEN_PATHS | {"/metrics"}
"""By probes and Prometheus; their lines would hide the others."""
_USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


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
        self._log_requests = context.config.log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _incoming_id(scope) or uuid.uuid4().hex
        scope["octavo.request_id"] = request_id
        status = 0
        started_s = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if self._context.is_leaving:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            _logger.exception("request failed id=%s path=%s", request_id, scope["path"])
            if status == 0:
                await internal_error().to_response()(scope, receive, send_with_id)
        if self._log_requests:
            log_event(
                _logger,
                "request",
                level=logging.DEBUG if scope["path"] in _ASKED_ALL_THE_TIME else logging.INFO,
                id=request_id,
                method=scope["method"],
                path=scope["path"],
                status=status,
                seconds=round(time.monotonic() - started_s, 4),
            )


def _incoming_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _USABLE_ID.fullmatch(value):
            return bytes(value).decode("ascii")
    return None

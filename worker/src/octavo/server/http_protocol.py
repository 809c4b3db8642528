"""uvicorn's HTTP/1.1, with bounds on what one connection holds and for how long.

It buffers headers and requests that come ahead without a limit, and waits without a time for
headers, for the rest of a body that nobody reads, and for a client to take its answer: each would
let one client hold memory and connections. Delete what uvicorn's own limits come to cover for
httptools.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from octavo.server.errors import ApiError, headers_too_large, no_http
from octavo.server.http_parser import HttpParser
from octavo.server.limits import (
    BODY_TIMEOUT_S,
    HEADER_TIMEOUT_S,
    MAX_HEADER_BYTES,
    MAX_PIPELINED,
    UNREAD_TIMEOUT_S,
)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = HttpParser(self)  # type: ignore[assignment]
        self._num_header_bytes = 0
        """Received since the last request ended, of one whose headers are not complete."""
        self._num_field_bytes = 0
        self._is_in_body = False
        self.is_unheard = True
        """Its first request has not come yet, or not whole headers of it."""
        self._timer: asyncio.TimerHandle | None = None
        """Until the request that is coming has to be there."""
        self._unread: asyncio.TimerHandle | None = None
        """Until the client has to have taken what was sent."""
        self._answering: RequestResponseCycle | None = None
        """The request that is being answered; uvicorn knows the last that came, which may wait."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_unheard = False
        self._stop_timer()
        self.resume_writing()
        super().connection_lost(exc)
        answering, self._answering = self._answering, None
        if answering is not None and not answering.response_complete:
            answering.disconnected = True
            answering.message_event.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if not self._is_in_body:
            self._num_header_bytes += len(data)
            if self._timer is None:
                self._timer = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up)
        super().data_received(data)
        if not self._is_in_body and self._num_header_bytes > MAX_HEADER_BYTES:
            self._refuse(headers_too_large())

    def send_400_response(self, msg: str) -> None:
        self._refuse(no_http())

    def on_message_begin(self) -> None:
        self._num_field_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_field_bytes += len(name) + len(value)
        if self._num_field_bytes > 2 * MAX_HEADER_BYTES:
            self.transport.close()
        elif not self._is_in_body:  # else it is a trailer, which nobody in front of us looks at
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(BODY_TIMEOUT_S, self._give_up)
        self._num_header_bytes, self._is_in_body, self.is_unheard = 0, True, False
        if len(self.pipeline) < MAX_PIPELINED:
            super().on_headers_complete()
        else:
            self.transport.abort()

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._is_in_body = False
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self, answer: ApiError) -> None:
        """The last that is said on this connection."""
        if not self.transport.is_closing():
            body = answer.to_json()
            status, phrase = answer.status, HTTPStatus(answer.status).phrase
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n"
            head += f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _give_up(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._is_in_body and not self.cycle.response_complete:
            # Whoever reads the body has a time of his own; then, at the latest, nobody reads it.
            self._timer = self.loop.call_later(BODY_TIMEOUT_S, self._give_up)
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

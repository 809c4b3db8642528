"""httptools' parser of requests, for a server that speaks HTTP/1.1 only.

Some clients offer another protocol with a request (Java's asks every server for ``h2c``). A server
that does not know it answers as if it had not been offered (RFC 9110, section 7.8), but httptools
stops reading where the headers end, and takes the body for that protocol's.
"""

from __future__ import annotations

from typing import Any

import httptools

_FRAMING = (b"content-length", b"transfer-encoding")


class HttpParser:
    """Calls the methods of a protocol as :class:`httptools.HttpRequestParser` does, and goes on
    with the body where that one stops."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._is_silent = False
        """The headers were told of already."""
        self._framing: list[tuple[bytes, bytes]] = []
        self._parser = self._fresh()

    def feed_data(self, data: bytes) -> None:
        """Take in more of the connection; raises HttpParserError for what is no HTTP."""
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stop:
                data = data[stop.args[0] :]
            head = b"".join(b"%b: %b\r\n" % header for header in self._framing)
            self._parser, self._is_silent = self._fresh(), True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n" + head + b"\r\n")

    def get_http_version(self) -> str:
        """Of the request whose headers are complete."""
        return self._parser.get_http_version()

    def get_method(self) -> bytes:
        """Of the request whose headers are complete."""
        return self._parser.get_method()

    def should_keep_alive(self) -> bool:
        """Whether the connection may serve another request."""
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """Never."""
        return False

    def on_message_begin(self) -> None:
        """From httptools, as those below."""
        if not self._is_silent:
            self._framing = []
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        if not self._is_silent:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header, or a trailer."""
        if not self._is_silent:
            if name.lower() in _FRAMING:
                self._framing.append((name, value))
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        """What comes next is the body."""
        if not self._is_silent:
            self._protocol.on_headers_complete()
        self._is_silent = False

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole, unless the parser only stops here."""
        if not self._parser.should_upgrade():
            self._protocol.on_message_complete()

    def _fresh(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # As uvicorn sets it: a request that was the last may have others after it.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

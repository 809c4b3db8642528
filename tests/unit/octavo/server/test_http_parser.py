"""Clients that offer another protocol are answered in HTTP/1.1, with bodies and later requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx
import pytest

from fake_engine import FakeEngine
from octavo.config import ServerConfig
from octavo.server import http_protocol
from running_server import running_server

BODY = json.dumps({"prompt": "hello", "max_tokens": 2}).encode()
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
"""As Java's HttpClient sends it with the first request of a connection."""
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + OFFER
LAST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = (
    HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n5\r\n%b\r\n%x\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n"
    % (
        BODY[:5],
        len(BODY) - 5,
        BODY[5:],
    )
)


async def _ask(url: str, pieces: Iterator[bytes]) -> bytes:
    where = httpx.URL(url)
    assert where.port is not None
    reader, writer = await asyncio.open_connection(where.host, where.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("request_", [WHOLE, CHUNKED], ids=["whole", "chunked"])
@pytest.mark.parametrize("size", [10_000, 7, 1])
async def test_an_offer_of_another_protocol_is_passed_over(request_: bytes, size: int) -> None:
    sent = request_ + WHOLE + LAST
    async with running_server(FakeEngine()) as server:
        pieces = (sent[at : at + size] for at in range(0, len(sent), size))
        answer = await _ask(server.url, pieces)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.count(b'"object":"text_completion"') == 2
    assert answer.endswith(b'{"status":"ready"}')


@pytest.mark.parametrize("offer", [b"", OFFER], ids=["", "offer"])
async def test_trailers_are_no_headers(offer: bytes) -> None:
    """A proxy that checks or replaces headers does not look at them."""
    chunked = CHUNKED.replace(OFFER, offer)
    trailers = b"Authorization: Bearer k\r\nX-Request-Id: from-a-trailer\r\n"
    asked = chunked.replace(b"X-Trailer: 1\r\n", trailers)
    for config, status in ((ServerConfig(), b"200"), (ServerConfig(api_keys=("k",)), b"401")):
        async with running_server(FakeEngine(), config) as server:
            answer = await _ask(server.url, iter([asked + LAST]))
        assert answer.startswith(b"HTTP/1.1 %b " % status)
        assert answer.count(b"HTTP/1.1 ") == 2
        assert b"from-a-trailer" not in answer


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200),
        ("/v1/models", 200),
        ("/metrics", 200),
        ("/no", 404),
        ("/v1/responses", 405),
    ],
)
async def test_head_is_get_without_a_body(path: str, status: int) -> None:
    """As load balancers, monitors and ``curl -I`` ask; the connection stays usable."""
    head = b"HEAD %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode()
    async with running_server(FakeEngine()) as server:
        answer = await _ask(server.url, iter([head + LAST]))
        async with httpx.AsyncClient(base_url=server.url) as client:
            got = await client.get(path)
    first, second = answer.split(b"\r\n\r\n", 1)
    assert first.startswith(b"HTTP/1.1 %d " % status)
    assert got.status_code == status
    if path != "/metrics":  # which counts its own
        assert b"content-length: %d" % len(got.content) in first
    assert second.startswith(b"HTTP/1.1 200 OK")
    assert second.endswith(b'{"status":"ready"}')


async def test_an_offer_without_a_body_is_passed_over() -> None:
    get = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with running_server(FakeEngine()) as server:
        answer = await _ask(server.url, iter([get + LAST]))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b'"object":"list"' in answer


async def test_what_follows_an_offer_and_is_no_http_is_refused() -> None:
    async with running_server(FakeEngine()) as server:
        answer = await _ask(server.url, iter([WHOLE + b"PRI * NONSENSE\r\n\r\n"]))
    assert b"HTTP/1.1 400 Bad Request" in answer


@pytest.mark.parametrize(
    "bad",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        WHOLE.replace(b"Content-Length", b"Content-Length: 1\r\nContent-Length"),
        CHUNKED.replace(b"Transfer-", b"Content-Length: 4\r\nTransfer-"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nno header"),
    ],
    ids=["http2", "tls", "two lengths", "length and chunks", "header"],
)
async def test_what_is_no_http_is_refused_in_the_shape_of_all_errors(bad: bytes) -> None:
    async with running_server(FakeEngine()) as server:
        answer = await _ask(server.url, iter([bad]))
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(body)["error"]["code"] == "invalid_http"


async def test_any_number_of_offers_may_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "MAX_PIPELINED", 1000)
    get = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with running_server(FakeEngine()) as server:
        answer = await _ask(server.url, iter([600 * get + LAST]))
    assert answer.count(b"HTTP/1.1 200 OK") == 601

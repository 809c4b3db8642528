"""A TCP proxy over the ready pods of one service, that can hold callers until there is one.

The Service of local mode, and in a cluster what answers for a service that is scaled to zero. Bytes
pass untouched, so streams stream. A connection stays with its pod until it ends; a pod that leaves
gets no new ones. With no pod ready, callers wait for `hold_s` at most; then, or when too many wait
already, the answer is an HTTP 503 in OpenAI's shape that says when to come back. Who closes the
connection, or its own half of it, is not waited for any longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from collections.abc import Callable
from typing import Final, TypeAlias

from octavo_operator.address import Address
from octavo_operator.errors import LocalError, PortInUseError

_CHUNK: Final = 65_536
_CONNECT_TIMEOUT_S: Final = 2.0
HELD_POLL_S: Final = 0.1
MAX_HELD: Final = 1000
"""Connections that wait at a time, each with a file descriptor and little else."""

MAX_CONNECTIONS: Final = 3000
"""At a time, those that wait for nothing included: each takes up to two of the files that the whole
program may open. The next is closed at once."""

_MOST_BYTES_AHEAD: Final = 16 * 1024 * 1024
"""Of all callers that wait. Who has sent what is beyond it is held to the end, there or not."""

RETRY_AFTER_S: Final = 10
_UNAVAILABLE: Final = json.dumps(
    {
        "error": {
            "message": "No worker is ready yet; try again in a few seconds.",
            "type": "service_unavailable",
            "param": None,
            "code": "no_ready_worker",
        }
    }
).encode()

Stream: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HoldingProxy:
    """`endpoints` is asked anew for each connection; `on_call` is told when one has to wait."""

    def __init__(
        self,
        host: str,
        port: int,
        endpoints: Callable[[], tuple[Address, ...]],
        *,
        hold_s: float = 0.0,
        on_call: Callable[[], None] = lambda: None,
    ) -> None:
        self._host = host
        self._port = port
        self._endpoints = endpoints
        self.hold_s = hold_s
        self._on_call = on_call
        self.num_held = 0
        self._bytes_ahead = 0
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; PortInUseError when somebody else does."""
        try:
            self._server = await asyncio.start_server(self._accept, self._host, self._port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(self._host, self._port) from error
            raise LocalError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}; choose others with "
                f"--host and --port"
            ) from error

    @property
    def port(self) -> int:
        """The port listened on, also when 0 was asked for."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def has_connections(self) -> bool:
        return bool(self._connections)

    def close(self) -> None:
        """Take no more connections; those there are go on."""
        if self._server is not None:
            self._server.close()

    async def finish(self) -> None:
        """Drop the connections that are left."""
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            # The client went away, or the program ends; there is nobody left to tell.
            pass
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = bytearray()
        upstream = await self._connect()
        if upstream is None and self.hold_s > 0 and self.num_held < MAX_HELD:
            upstream = await self._hold(reader, sent)
        if upstream is None:
            await _refuse(reader, writer, has_spoken=bool(sent))
            return
        pod_reader, pod_writer = upstream
        try:
            pod_writer.write(sent)
            await _relay((reader, pod_writer), (pod_reader, writer))
        finally:
            pod_writer.close()
            with contextlib.suppress(OSError):
                await pod_writer.wait_closed()

    async def _hold(self, reader: asyncio.StreamReader, sent: bytearray) -> Stream | None:
        """Wait for a pod; None when there is none in time, or the caller has gone.

        What the caller says meanwhile is put into `sent`.
        """
        self.num_held += 1
        self._on_call()
        leaving = asyncio.create_task(self._read_ahead(reader, sent))
        try:
            async with asyncio.timeout(self.hold_s):
                while not leaving.done():
                    upstream = await self._connect()
                    if upstream is not None:
                        return upstream
                    await asyncio.wait({leaving}, timeout=HELD_POLL_S)
        except TimeoutError:
            pass
        finally:
            self.num_held -= 1
            leaving.cancel()
            self._bytes_ahead -= len(sent)
            await asyncio.gather(leaving, return_exceptions=True)
        return None

    async def _read_ahead(self, reader: asyncio.StreamReader, sent: bytearray) -> None:
        """Until the caller ends what it sends: that it left is behind all that it has said."""
        while self._bytes_ahead < _MOST_BYTES_AHEAD:
            data = await reader.read(_CHUNK)
            if not data:
                return
            sent += data
            self._bytes_ahead += len(data)
        await asyncio.Event().wait()

    async def _connect(self) -> Stream | None:
        """A connection to the next pod that takes one; nothing is sent yet, so any will do."""
        endpoints = self._endpoints()
        self._turn += 1
        for offset in range(len(endpoints)):
            address = endpoints[(self._turn + offset) % len(endpoints)]
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    return await asyncio.open_connection(address.host, address.port)
        return None


async def _relay(request: Stream, response: Stream) -> None:
    """Pass bytes both ways until the pod has said all it has to say.

    A client may close its half early and still wait for the answer.
    """
    upward = asyncio.create_task(_copy(*request))
    downward = asyncio.create_task(_copy(*response))
    try:
        await downward
    finally:
        upward.cancel()
        downward.cancel()
        await asyncio.gather(upward, downward, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def _refuse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, has_spoken: bool
) -> None:
    if not has_spoken:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                # Answering before the request is in would look like a reset to the client.
                await reader.read(_CHUNK)
    writer.write(
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        b"Retry-After: %d\r\nConnection: close\r\n"
        % RETRY_AFTER_S
        + f"Content-Length: {len(_UNAVAILABLE)}\r\n\r\n".encode()
        + _UNAVAILABLE
    )
    await writer.drain()

"""The engine's end of the wall between its process and the server's. Torch-free."""

from __future__ import annotations

import math
import select
import socket
import time
from collections import deque
from typing import Any

import msgspec

from octavo.engine.messages import FrameSplitter, FromEngine, ToEngine, frame
from octavo.engine.waker import Waker


class ServerGoneError(Exception):
    """The server's end of the socket is closed; there is nobody to work for."""


class EngineChannel:
    """Never blocks the engine's loop on a slow server.

    Every method raises :class:`ServerGoneError` when the server's end is closed.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._splitter = FrameSplitter()
        self._outbox: deque[memoryview] = deque()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToEngine)

    def receive(self, timeout_s: float = math.inf, waker: Waker | None = None) -> list[ToEngine]:
        """Messages that have arrived; where there are none, waits for one until the time is up or
        ``waker`` is woken. With no time, what is there already."""
        messages: list[ToEngine] = []
        until_s = time.monotonic() + timeout_s if timeout_s else 0.0
        while True:
            self._flush()
            if until_s and not messages:
                ready = self._wait(until_s, waker)
                if not ready:
                    return messages
                if waker is not None and waker.fileno() in ready:
                    waker.clear()
                    until_s = 0.0
                elif ready == {self._socket.fileno(): select.POLLOUT}:
                    continue
            try:
                data = self._socket.recv(1 << 18)
            except BlockingIOError:
                return messages
            except ConnectionError as error:
                raise ServerGoneError from error
            if not data:
                raise ServerGoneError
            messages += [self._decoder.decode(body) for body in self._splitter.feed(data)]

    def send(self, message: FromEngine) -> None:
        """Queue a message and send what the socket takes now."""
        self._outbox.append(memoryview(frame(self._encoder, message)))
        self._flush()

    def flush_blocking(self) -> None:
        """Send everything, waiting as long as it takes; for the last words of a process."""
        self._socket.setblocking(True)
        try:
            while self._outbox:
                self._socket.sendall(self._outbox.popleft())
        except ConnectionError as error:
            raise ServerGoneError from error

    def _wait(self, until_s: float, waker: Waker | None) -> dict[int, int]:
        """Until there is something to read or room for what is to be sent: what has happened, by
        descriptor. Empty: the time is up."""
        poll = select.poll()  # select() takes no numbers above 1023
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._outbox else 0))
        if waker is not None:
            poll.register(waker, select.POLLIN)
        left_s = max(0.0, until_s - time.monotonic())
        return dict(poll.poll(None if math.isinf(left_s) else 1e3 * left_s))

    def _flush(self) -> None:
        while self._outbox:
            head = self._outbox[0]
            try:
                sent = self._socket.send(head)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise ServerGoneError from error
            if sent == len(head):
                self._outbox.popleft()
            else:
                self._outbox[0] = head[sent:]

"""What crosses the wall between the server's process and the engine's.

Frames of a 4-byte big-endian length and a msgpack body over a Unix socket pair. Knows how to
encode and to buffer; knows nothing of what the messages cause. Torch-free.
"""

from __future__ import annotations

import math
import select
import signal
import socket
import struct
import time
from collections import deque
from typing import Any

import msgspec

from octavo.engine.interface import ModelInfo
from octavo.engine.waker import Waker
from octavo.grammar import Grammar
from octavo.lora.adapter_source import AdapterSource
from octavo.outputs import EngineStats, RequestState, RequestUpdate
from octavo.pooling_params import PoolingParams
from octavo.request import EVERYONE, Tenant
from octavo.sampling_params import SamplingParams

WHERE_SIGNAL = signal.SIGUSR1
"""Makes the engine's process print where each of its threads is: functions and lines, no values."""


class RequestSpec(msgspec.Struct, array_like=True):
    """One request, tokenised and hashed, ready for the scheduler."""

    id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    stop_token_ids: list[int]
    eos_token_ids: list[int]
    priority: int = 0
    timeout_s: float | None = None
    cache_key: bytes | None = None
    block_hashes: list[bytes] = []
    leader_id: str | None = None
    tenant: Tenant = EVERYONE
    pooling: PoolingParams | None = None
    adapter_id: int | None = None
    grammar: Grammar | None = None


class Submit(msgspec.Struct, tag=True, array_like=True):
    """Requests that enter together: the n choices of one prompt."""

    requests: list[RequestSpec]


class Abort(msgspec.Struct, tag=True, array_like=True):
    """End these requests; ids already finished are ignored."""

    request_ids: list[str]


class OpenAdapter(msgspec.Struct, tag=True, array_like=True):
    """Read an adapter; answered by AdapterOpened or AdapterFailed."""

    adapter_id: int
    source: AdapterSource
    known_digest: str | None = None
    """If the files have this digest, nothing is kept."""


class CloseAdapter(msgspec.Struct, tag=True, array_like=True):
    """Forget an adapter; requests of it that are still open end."""

    adapter_id: int


class Inspect(msgspec.Struct, tag=True, array_like=True):
    """Say where every open request stands."""

    serial: int
    """Returned with the answer."""


class Shutdown(msgspec.Struct, tag=True, array_like=True):
    """Leave the loop and exit with status 0."""


class PhaseStarted(msgspec.Struct, tag=True, array_like=True):
    """Loading is in a phase; sent again as it moves on.

    In order: import, files, weights, kernels (CUDA), kv_cache, graphs (CUDA) or warmup,
    adapter_memory (with LoRA), adapters (where there are any).
    """

    name: str
    detail: str = ""
    fraction: float | None = None
    """Share of the phase that is done, where that is known."""


class PhaseFinished(msgspec.Struct, tag=True, array_like=True):
    """A loading phase ended after ``seconds``."""

    name: str
    seconds: float


class FilesFound(msgspec.Struct, tag=True, array_like=True):
    """Where the tokenizer's files lie, so that the server can open them meanwhile."""

    tokenizer_path: str | None


class Ready(msgspec.Struct, tag=True, array_like=True):
    """The engine can serve."""

    info: ModelInfo


class LoadFailed(msgspec.Struct, tag=True, array_like=True):
    """Loading failed; ``kind`` is the name of an error in octavo.errors."""

    kind: str
    message: str


class Refused(msgspec.Struct, tag=True, array_like=True):
    """A submitted request was not accepted."""

    request_id: str
    kind: str
    message: str
    param: str | None = None
    retry_after_s: float = 0.0


class AdapterOpened(msgspec.Struct, tag=True, array_like=True):
    """Requests may use an adapter; or, with ``is_known``, its files are those named, or could be
    read again after :class:`AdapterFailed`."""

    adapter_id: int
    digest: str
    rank: int
    size_bytes: int
    seconds: float
    base_model: str | None = None
    revision: str | None = None
    is_known: bool = False


class AdapterFailed(msgspec.Struct, tag=True, array_like=True):
    """An adapter is not served, or, of one that was opened, could not be read again when it was
    needed; ``kind`` is the name of an error in octavo.errors."""

    adapter_id: int
    kind: str
    message: str


class Inspected(msgspec.Struct, tag=True, array_like=True):
    """The answer to :class:`Inspect`."""

    serial: int
    requests: list[RequestState]


class StepReport(msgspec.Struct, tag=True, array_like=True):
    """What one turn of the loop did, or how long the next one may take."""

    updates: list[RequestUpdate]
    stats: EngineStats | None = None
    """Not with every step: it would cost more than the step's news."""
    limit_s: float = 0.0
    """How long what is under way may go on without a word, where that is longer than usual."""


ToEngine = Submit | Abort | OpenAdapter | CloseAdapter | Inspect | Shutdown
AdapterEvent = AdapterOpened | AdapterFailed | Refused
FromEngine = (
    PhaseStarted
    | PhaseFinished
    | FilesFound
    | Ready
    | LoadFailed
    | Refused
    | AdapterOpened
    | AdapterFailed
    | Inspected
    | StepReport
)

_LENGTH = struct.Struct("!I")
_MAX_FRAME_BYTES = 1 << 30


class FrameSplitter:
    """Cuts a byte stream into frames.

    Raises ValueError for a length no message has: the stream is out of step, and waiting for so
    many bytes would be waiting forever.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes; return the bodies of the frames now complete."""
        self._buffer += data
        frames, offset, end = [], 0, len(self._buffer)
        while end - offset >= 4:
            (length,) = _LENGTH.unpack_from(self._buffer, offset)
            if length > _MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes; the largest has {_MAX_FRAME_BYTES}")
            if end - offset - 4 < length:
                break
            frames.append(bytes(self._buffer[offset + 4 : offset + 4 + length]))
            offset += 4 + length
        if offset:
            del self._buffer[:offset]
        return frames


def frame(encoder: msgspec.msgpack.Encoder, message: object) -> bytes:
    """One message as length and body; ValueError where it is too large for one."""
    body = encoder.encode(message)
    if len(body) > _MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(body)} bytes; the largest has {_MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class ServerGoneError(Exception):
    """The server's end of the socket is closed; there is nobody to work for."""


class EngineChannel:
    """The engine's end of the wall: never blocks the loop on a slow server.

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

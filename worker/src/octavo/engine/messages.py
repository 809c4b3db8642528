"""What crosses the wall between the server's process and the engine's.

Frames of a 4-byte big-endian length and a msgpack body over a Unix socket pair. Knows how messages
are written and cut out of a stream; knows nothing of what they cause. Torch-free.
"""

from __future__ import annotations

import signal
import struct

import msgspec

from octavo.engine.model_info import ModelInfo
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
    """Requests that enter together: the choices of all prompts that were asked as one."""

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

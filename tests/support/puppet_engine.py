"""An AsyncEngine whose engine process is played by the test: it holds the far end of the socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.messages import (
    FilesFound,
    FrameSplitter,
    FromEngine,
    Ready,
    StepReport,
    ToEngine,
    frame,
)
from octavo.engine.model_info import ModelInfo
from octavo.outputs import EngineStats, RequestUpdate

INFO = ModelInfo(
    name="tiny",
    max_model_len=128,
    vocab_size=272,
    has_tokenizer=True,
    eos_token_ids=[257],
    created=0,
)


class PuppetEngine(AsyncEngine):
    """The process is a ``sleep``: it lives, can be killed, and says nothing."""

    def __init__(self) -> None:
        super().__init__(EngineConfig(model="tiny"))
        self._splitter = FrameSplitter()
        self._to_engine: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToEngine)

    async def _start_process(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        self.far_end = theirs.dup()
        self.far_end.setblocking(False)
        return await asyncio.create_subprocess_exec("sleep", "1000")

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._connection is not None
        return self._connection.process

    @property
    def num_open(self) -> int:
        """Choices that are registered."""
        return len(self._open)

    def say(self, message: FromEngine) -> None:
        """Speak as the engine."""
        self.say_bytes(frame(msgspec.msgpack.Encoder(), message))

    def say_bytes(self, data: bytes) -> None:
        self.far_end.sendall(data)

    def report(self, *updates: RequestUpdate) -> None:
        """Speak of a step."""
        self.say(StepReport(list(updates), EngineStats()))

    async def hear(self) -> Any:
        """The next message to the engine."""
        return (await self._hear(1))[0]

    async def _hear(self, count: int) -> list[Any]:
        loop, heard = asyncio.get_running_loop(), list[Any]()
        async with asyncio.timeout(30):
            while len(heard) < count:
                data = await loop.sock_recv(self.far_end, 1 << 16)
                assert data, "the server's end closed"
                heard += [self._to_engine.decode(body) for body in self._splitter.feed(data)]
        assert len(heard) == count, f"more than was expected: {heard}"
        return heard

    async def hear_nothing(self) -> None:
        """Fail if anything was said."""
        await asyncio.sleep(0.02)
        try:
            data = self.far_end.recv(1 << 16)
        except BlockingIOError:
            return
        raise AssertionError(f"said: {self._splitter.feed(data)!r}")


@asynccontextmanager
async def puppet_engine(
    tokenizer: Path | None = None, info: ModelInfo = INFO
) -> AsyncIterator[PuppetEngine]:
    """Started; READY if there is a tokenizer to be ready with."""
    engine = PuppetEngine()
    await engine.start()
    try:
        if tokenizer is not None:
            engine.say(FilesFound(str(tokenizer)))
            engine.say(Ready(info))
            await engine.wait_ready()
        yield engine
    finally:
        engine.process.kill() if engine.process.returncode is None else None
        await engine.close()
        engine.far_end.close()

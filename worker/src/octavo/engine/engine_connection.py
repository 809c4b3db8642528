"""The engine's process and the server's end of the socket to it.

Knows how the process is begun, spoken to, made to say where it is, and ended, and in what words its
end is told; nothing of what messages mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec

from octavo.engine.messages import (
    WHERE_SIGNAL,
    FrameSplitter,
    FromEngine,
    Shutdown,
    ToEngine,
    frame,
)

_READ_SIZE = 1 << 18
_KILL_AFTER_S = 5.0
_WHERE_S = 0.3
"""What a stuck engine gets to print where it is."""

Start = Callable[[socket.socket], Awaitable[asyncio.subprocess.Process]]
"""Starts a process that talks over this end of a socket."""


async def start_engine_process(
    theirs: socket.socket, environment: Mapping[str, str]
) -> asyncio.subprocess.Process:
    """The real one."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # no module may come from the folder we happen to run in: it may be a model's
        "-m",
        "octavo.engine.core_process",
        str(theirs.fileno()),
        pass_fds=[theirs.fileno()],
        env=environment,
    )


class EngineConnection:
    """Begun by :meth:`open`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()

    @classmethod
    async def open(cls, start: Start) -> EngineConnection:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await start(theirs)
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return cls(process, reader, writer)

    def send(self, message: ToEngine) -> None:
        """Nothing is said to an engine that has gone: the reader is about to notice."""
        if not self._writer.is_closing():
            self._writer.write(frame(self._encoder, message))

    async def messages(self) -> AsyncIterator[FromEngine]:
        """Until the engine's end closes, which it does only by dying.

        Raises ValueError (msgspec's errors are such) for what cannot be understood.
        """
        splitter = FrameSplitter()
        decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromEngine)
        try:
            while data := await self._reader.read(_READ_SIZE):
                for body in splitter.feed(data):
                    yield decoder.decode(body)
        except OSError:
            pass  # it died with our words unread

    def kill(self) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    async def kill_telling_where(self) -> None:
        """Have a stuck process print where it is, then kill it.

        A process that the kernel holds does not die at once; it is not waited for.
        """
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(WHERE_SIGNAL)
        await asyncio.sleep(_WHERE_S)
        self.kill()

    async def exit_reason(self) -> str:
        """How the process ended, to go on after "The engine process"."""
        try:
            status = await asyncio.wait_for(self.process.wait(), _KILL_AFTER_S)
        except TimeoutError:
            return "closed its connection and runs on"
        if status == -signal.SIGKILL:
            return "was killed; the usual reason is that its memory limit was reached"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}; its log says where"
        return f"ended with status {status}; its log says why"

    async def end_process(self, is_listening: bool) -> None:
        """Ask it to end if it listens, and end it if it does not. One that the kernel holds is left
        behind."""
        if is_listening:
            self.send(Shutdown())
            await self._wait_for_end()
        self.kill()
        await self._wait_for_end()

    async def _wait_for_end(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), _KILL_AFTER_S)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

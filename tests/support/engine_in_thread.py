"""The loop of the engine's process in a thread, with the test as the server."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from octavo.engine.core import EngineCore
from octavo.engine.core_process import EngineLoop
from octavo.engine.engine_channel import EngineChannel
from octavo.engine.messages import (
    FrameSplitter,
    FromEngine,
    StepReport,
    ToEngine,
    frame,
)
from octavo.engine.model_info import ModelInfo
from octavo.outputs import RequestUpdate


@dataclass
class Loop:
    """A loop under way and what it has said."""

    far: socket.socket
    thread: threading.Thread
    statuses: list[int]
    """What the loop returned, once it has."""
    heard: list[Any] = field(default_factory=list)
    splitter: FrameSplitter = field(default_factory=FrameSplitter)
    decoder: Any = field(default_factory=lambda: msgspec.msgpack.Decoder(FromEngine))

    def say(self, message: ToEngine) -> None:
        self.far.sendall(frame(msgspec.msgpack.Encoder(), message))

    def listen(self, enough: Callable[[], bool]) -> None:
        """Until ``enough``, or the loop ends."""
        while not enough() and (data := self.far.recv(1 << 16)):
            self.heard += [self.decoder.decode(body) for body in self.splitter.feed(data)]

    def updates(self, request_id: str) -> list[RequestUpdate]:
        return [
            update
            for report in self.heard
            if isinstance(report, StepReport)
            for update in report.updates
            if update.request_id == request_id
        ]

    def has_ended(self, request_id: str) -> bool:
        return any(update.finish_reason for update in self.updates(request_id))

    def status(self) -> int:
        self.thread.join(60)
        return self.statuses[0]


@contextlib.contextmanager
def running_loop(core: EngineCore, info: ModelInfo, *first: ToEngine) -> Iterator[Loop]:
    """``first``: there before the loop begins. At the end it has ended, and the core is closed."""
    near, far = socket.socketpair()
    far.settimeout(60)
    statuses: list[int] = []

    def run() -> None:
        with near:
            statuses.append(EngineLoop(core, info, EngineChannel(near)).run())

    loop = Loop(far, threading.Thread(target=run), statuses)
    for message in first:
        loop.say(message)
    loop.thread.start()
    try:
        yield loop
    finally:
        far.close()
        loop.thread.join(60)

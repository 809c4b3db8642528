"""The engine's end of the wall, whose other side is slow or gone."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from octavo.engine.engine_channel import EngineChannel, ServerGoneError
from octavo.engine.messages import (
    Abort,
    FrameSplitter,
    FromEngine,
    Refused,
    Shutdown,
    StepReport,
    frame,
)
from octavo.engine.waker import Waker
from octavo.outputs import EngineStats, RequestUpdate

ENCODER = msgspec.msgpack.Encoder()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def test_what_a_slow_server_has_not_read_waits_and_arrives_in_order(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, far = ends
    channel = EngineChannel(near)
    reports = [
        StepReport([RequestUpdate(str(i), [i] * 5000)], EngineStats(num_steps=i))
        for i in range(200)
    ]
    for report in reports:
        channel.send(report)  # far more than a socket's buffer holds, and nobody reads
    splitter, read = FrameSplitter(), list[Any]()
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromEngine)
    writing = threading.Thread(target=channel.flush_blocking)
    writing.start()
    while len(read) < len(reports):
        read += [decoder.decode(body) for body in splitter.feed(far.recv(1 << 20))]
    writing.join()
    assert read == reports


def test_an_idle_wait_also_sends(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    channel = EngineChannel(near)
    report = StepReport([RequestUpdate("r", [1] * 3_000_000)], EngineStats())
    channel.send(report)
    read = bytearray()

    def reader() -> None:
        while chunk := far.recv(1 << 20):
            read.extend(chunk)
            if len(read) == len(frame(ENCODER, report)):
                far.sendall(frame(ENCODER, Shutdown()))
                return

    reading = threading.Thread(target=reader)
    reading.start()
    assert channel.receive(60) == [Shutdown()]
    reading.join()


def test_receive_takes_what_is_there_and_does_not_wait_for_more(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, far = ends
    channel = EngineChannel(near)
    assert channel.receive(0) == []
    assert channel.receive(0.01) == []
    data = frame(ENCODER, Abort(["a"])) + frame(ENCODER, Abort(["b"]))
    far.sendall(data[:-1])
    assert channel.receive() == [Abort(["a"])]
    far.sendall(data[-1:])
    assert channel.receive() == [Abort(["b"])]


def test_a_wait_ends_when_the_waker_is_woken(ends: tuple[socket.socket, socket.socket]) -> None:
    near, _far = ends
    channel, waker = EngineChannel(near), Waker()
    waker.wake()
    assert channel.receive(waker=waker) == []
    assert channel.receive(0.001, waker) == []
    # Nobody reads, so there is always something to send: neither keeps the other from ending it.
    channel.send(StepReport([RequestUpdate("r", [1] * 3_000_000)], EngineStats()))
    waker.wake()
    assert channel.receive(waker=waker) == []


@pytest.fixture
def high() -> Iterator[Callable[[int], int]]:
    """Gives a descriptor's file a number that select() does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"no process may have more than {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    yield lambda descriptor: fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 1024)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_descriptors_may_have_high_numbers(
    ends: tuple[socket.socket, socket.socket],
    high: Callable[[int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = os.pipe

    def high_pipe() -> tuple[int, ...]:
        low = pipe()
        numbers = tuple(map(high, low))
        for end in low:
            os.close(end)
        return numbers

    monkeypatch.setattr(os, "pipe", high_pipe)
    with socket.socket(fileno=high(ends[0].fileno())) as near:
        channel, waker = EngineChannel(near), Waker()
        assert min(near.fileno(), waker.fileno()) > 1023
        ends[1].sendall(frame(ENCODER, Shutdown()))
        assert channel.receive(60, waker) == [Shutdown()]
        waker.wake()
        assert channel.receive(60, waker) == []


def test_a_server_that_has_gone_is_noticed_by_every_method(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, far = ends
    channel = EngineChannel(near)
    far.close()
    with pytest.raises(ServerGoneError):
        channel.receive()
    with pytest.raises(ServerGoneError):
        channel.send(Refused("r", "k", "m"))
    with pytest.raises(ServerGoneError):
        channel.flush_blocking()

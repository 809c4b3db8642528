"""A served model (:mod:`served_model`) behind :mod:`watched_serve`, and what its processes hold."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass

import httpx
import psutil  # type: ignore[import-untyped]

from served_model import ServedModel


@dataclass(frozen=True)
class Holdings:
    """What the two processes hold."""

    tasks: int
    objects: int
    server_threads: int
    engine_threads: int
    server_files: int
    engine_files: int
    server_bytes: int
    engine_bytes: int


@dataclass
class Watched:
    """A server, and the door at which it tells what it holds."""

    served: ServedModel
    door: str

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.served.url)
        assert url.port is not None
        return url.host, url.port

    def holdings(self) -> Holdings:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(self.door)
            counts = json.loads(connection.makefile("rb").read())
        server = psutil.Process(self.served.process.pid)
        (engine,) = server.children()
        return Holdings(
            counts["tasks"],
            counts["objects"],
            server.num_threads(),
            engine.num_threads(),
            server.num_fds(),
            engine.num_fds(),
            server.memory_info().rss,
            engine.memory_info().rss,
        )

    def gauges(self) -> tuple[float, float, float]:
        """Running, waiting, owned blocks."""
        metric = self.served.metric
        return (
            metric("vllm:num_requests_running"),
            metric("vllm:num_requests_waiting"),
            metric("octavo_kv_blocks", state="owned"),
        )

"""From listening to exit: load in the background, serve, drain, and say how it ended.

Knows signals, uvicorn and the engine's states; knows nothing of requests. It listens at once, so
that probes can tell "loading" from "gone".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from octavo.config import ServerConfig
from octavo.engine.interface import Engine, EngineState, LoadProgress
from octavo.logs import log_event
from octavo.server.app import create_admin_app, create_app
from octavo.server.context import ServerContext
from octavo.server.http_protocol import BoundedHttpProtocol
from octavo.server.listening import accept_waiting

_logger = logging.getLogger("octavo.server")
_LOADING_POLL_S = 0.1
_STATE_POLL_S = 0.2
_KEY_POLL_S = 2.0
_FLUSH_LIMIT_S = 5.0
"""How long answers may take to leave after their generation has ended."""
_HEARING_POLLS, _HEARING_POLL_S = 50, 0.01
"""How long a connection may take to say what it was made for, when the server ends."""
_KEEP_ALIVE_S = 75
"""Above the 60 s that proxies keep idle connections, so that it is the proxy that closes them."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Listener(Protocol):
    """Who wants to know how far the server is, e.g. a terminal."""

    def loading(self, progress: LoadProgress) -> None:
        """Called several times a second until the model is loaded."""

    def ready(self, model: str) -> None:
        """Requests are taken from now on."""

    def draining(self, num_open: int, timeout_s: float) -> None:
        """Shutdown has begun."""


class Lifecycle:
    """One run of the server, in front of an engine that was started; it closes the engine."""

    def __init__(self, engine: Engine, config: ServerConfig, listener: Listener) -> None:
        self._engine = engine
        self._config = config
        self._listener = listener
        self._stop = asyncio.Event()
        app = create_app(engine, config)
        self._context: ServerContext = app.state.context
        self._http = _http_server(app)
        self._admin_http = _http_server(create_admin_app(self._context))

    async def run(self, socket_: socket.socket, admin_socket: socket.socket | None = None) -> int:
        """Serve until a signal; returns the exit status: 0, or 1 when the engine died.

        ``admin_socket`` is for the routes of administrators, where the config gives them a port.
        Raises what stopped the engine from loading. A second signal ends the process at once.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_lost_exception)
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        http = asyncio.create_task(self._http.serve(sockets=[socket_]), name="http")
        others = [asyncio.create_task(self._watch_keys(), name="keys")]
        if admin_socket is not None:
            serving = self._admin_http.serve(sockets=[admin_socket])
            others.append(asyncio.create_task(serving, name="admin-http"))
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            if await self._load(stop, http):
                await self._serve(stop, http)
            return self._status()
        finally:
            stop.cancel()
            await self._engine.close()
            self._http.should_exit = self._admin_http.should_exit = True
            others[0].cancel()
            await asyncio.gather(http, *others, return_exceptions=True)
            if self._context.tracer is not None:
                await asyncio.to_thread(self._context.tracer.close)
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Begin to shut down, as the first signal does."""
        self._stop.set()

    def _status(self) -> int:
        return 0 if self._stop.is_set() and self._engine.state is not EngineState.DEAD else 1

    async def _load(self, stop: asyncio.Task[bool], http: asyncio.Task[None]) -> bool:
        """True when ready, False when told to stop before."""
        loading = asyncio.create_task(self._engine.wait_ready(), name="loading")
        try:
            while not (loading.done() or stop.done() or http.done()):
                self._listener.loading(self._engine.progress())
                await asyncio.wait(
                    (loading, stop, http),
                    timeout=_LOADING_POLL_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            if not loading.done():
                return False
            await loading
        finally:
            loading.cancel()
        self._listener.loading(self._engine.progress())
        # Nobody could ask before; an idle server must not look as if it had waited for calls.
        self._context.idle_since_s = time.monotonic()
        self._listener.ready(self._context.model_names()[0])
        return True

    async def _serve(self, stop: asyncio.Task[bool], http: asyncio.Task[None]) -> None:
        while self._engine.state is EngineState.READY and not (stop.done() or http.done()):
            await asyncio.wait(
                (stop, http), timeout=_STATE_POLL_S, return_when=asyncio.FIRST_COMPLETED
            )
        if stop.done():
            timeout_s = self._config.shutdown_timeout_s
            self._listener.draining(self._context.num_open, timeout_s)
            await self._leave(http)
            await self._engine.drain(timeout_s)
        elif self._engine.state is EngineState.DEAD:
            log_event(_logger, "the engine has died; the server exits", level=logging.ERROR)
        await self._flush()

    async def _watch_keys(self) -> None:
        """Take up changes of the files of keys."""
        while self._config.api_key_files:
            await asyncio.sleep(_KEY_POLL_S)
            await asyncio.to_thread(self._context.keys.reload_if_changed)

    async def _leave(self, http: asyncio.Task[None]) -> None:
        """Serve on while requests still find their way here, and let go of every connection.

        Readiness is red at once. Load balancers and clients that keep connections go on sending
        for a moment; they are answered, and told to connect elsewhere.
        """
        self._context.is_leaving = True
        deadline_s = time.monotonic() + self._config.shutdown_delay_s
        while self._engine.state is EngineState.READY and time.monotonic() < deadline_s:
            await asyncio.wait((http,), timeout=min(_STATE_POLL_S, self._config.shutdown_delay_s))
        self._http.end_connections()

    async def _flush(self) -> None:
        """Let answers that are complete leave."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_LIMIT_S):
                await self._context.wait_idle()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            # Nothing may delay this, neither threads nor clients. The engine's process ends with
            # ours.
            os._exit(128 + number)
        self.stop()


def _log_lost_exception(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """An exception nobody waits for. asyncio's own line would show the task and what it holds."""
    error = context.get("exception")
    _logger.error(
        "%s", context.get("message"), exc_info=error if isinstance(error, Exception) else None
    )


def _http_server(app: FastAPI) -> _HttpServer:
    return _HttpServer(
        uvicorn.Config(
            app,
            http=BoundedHttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(_FLUSH_LIMIT_S),
        )
    )


class _HttpServer(uvicorn.Server):
    """uvicorn, with signals left to us: it would stop listening before open requests end."""

    def end_connections(self) -> None:
        """Close idle connections now, and each of the others after its answer."""
        for connection in self._connections():
            if not connection.is_unheard:
                connection.shutdown()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, once those have their answer who had connected by then.

        Whoever the loop had not come to yet would find the connection reset.
        """
        listeners = sockets or []
        late = [connection for listener in listeners for connection in accept_waiting(listener)]
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        loop = asyncio.get_running_loop()
        for connection in late:
            await loop.connect_accepted_socket(self._protocol, connection)
        for _ in range(_HEARING_POLLS):
            if not any(connection.is_unheard for connection in self._connections()):
                break
            await asyncio.sleep(_HEARING_POLL_S)
        await super().shutdown(sockets)

    def _protocol(self) -> BoundedHttpProtocol:
        return BoundedHttpProtocol(self.config, self.server_state, self.lifespan.state)

    def _connections(self) -> list[BoundedHttpProtocol]:
        return [
            connection
            for connection in self.server_state.connections
            if isinstance(connection, BoundedHttpProtocol)
        ]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

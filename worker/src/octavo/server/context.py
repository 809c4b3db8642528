"""What every route needs: the engine, the configuration, the numbers; made once by ``app``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from octavo.config import ServerConfig
from octavo.engine.interface import Engine, EngineState
from octavo.engine.model_info import ModelInfo
from octavo.errors import UnknownModelError
from octavo.metrics.server_metrics import ServerMetrics
from octavo.server.errors import ApiError
from octavo.server.keys import KeyRing
from octavo.server.open_bodies import OpenBodies
from octavo.server.requests import RequestLedger
from octavo.server.tracing import RequestTracer
from octavo.tools.formats import MessageFormat

_LOADING_RETRY_S = 5
_MAX_NAMES_SHOWN = 20


@dataclass(slots=True)
class ServerContext:
    """Shared by all routes of one app."""

    engine: Engine
    config: ServerConfig
    keys: KeyRing = field(default_factory=KeyRing)
    ledger: RequestLedger = field(default_factory=RequestLedger)
    metrics: ServerMetrics | None = None
    tracer: RequestTracer | None = None
    """Where there is a collector."""
    bodies: OpenBodies = field(init=False)
    num_open: int = 0
    """Generation requests being answered now."""
    is_leaving: bool = False
    """The server has been told to stop; requests are taken, but each connection ends with one."""
    idle_since_s: float = field(default_factory=time.monotonic)
    """When the last generation request ended; counts only while none is open."""
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.bodies = OpenBodies(self.config.max_body_bytes)

    def model_names(self) -> tuple[str, ...]:
        """Names clients may use; the first is the one answers carry."""
        if self.config.served_model_names:
            return self.config.served_model_names
        info = self.engine.info
        return () if info is None else (info.name,)

    def ready_model(self) -> ModelInfo:
        """The model, when it can be asked; else ApiError 503 that says why not."""
        info = self.engine.info
        state = self.engine.state
        if self.is_leaving and state is EngineState.DEAD:
            state = EngineState.DRAINING  # it was told to end
        if state is EngineState.READY and info is not None:
            return info
        reason = {
            EngineState.DRAINING: "The server is shutting down; ask another replica.",
            EngineState.DEAD: "The engine has died and the server is about to exit; retry later.",
        }.get(state, "The model is still being loaded; retry when /health/ready answers 200.")
        raise ApiError(
            503, reason, code=f"engine_{state}", headers={"Retry-After": str(_LOADING_RETRY_S)}
        )

    def message_format(self) -> MessageFormat:
        """How the model writes its messages."""
        return MessageFormat.of(
            self.engine.chat_template_source,
            self.config.tool_call_parser,
            self.config.reasoning_parser,
        )

    def resolve_model(self, asked: str | None) -> str:
        """The name an answer carries; UnknownModelError for one that is not served."""
        names = self.model_names()
        if asked is None or asked in names:
            return names[0] if asked is None else asked
        if asked in self.engine.adapters:
            return asked
        raise UnknownModelError(
            f"model is {asked[:200]!r}; this server serves {self.shown_names()}. "
            "Use one of these, or leave model out.",
            "model",
        )

    def shown_names(self) -> str:
        """Names that requests may use, as many as an error tells."""
        adapters = self.engine.adapters.offered()[:_MAX_NAMES_SHOWN]
        return ", ".join(map(repr, (*self.model_names(), *(entry.name for entry in adapters))))

    def ready_metrics(self, info: ModelInfo) -> ServerMetrics:
        """The numbers of the loaded model; their buckets follow its length."""
        if self.metrics is None:
            self.metrics = ServerMetrics(self.model_names()[0], info.max_model_len)
        return self.metrics

    @contextmanager
    def track_request(self) -> Iterator[None]:
        """Count a generation request as open."""
        self.num_open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_open -= 1
            if not self.num_open:
                self.idle_since_s = time.monotonic()
                self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no generation request is open."""
        if self.num_open:
            await self._idle.wait()

"""What probes and the operator ask. ``/health/live``: is the process worth keeping;
``/health/loaded``: is the model there, whatever else is waited for;
``/health/ready`` (and ``/health`` and ``/ping``, its older names): can a request be served now;
``/health/startup``: how long loading took, by phase; ``/health/load``: is anybody being served."""

from __future__ import annotations

import time

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from octavo.engine.interface import EngineState
from octavo.server.context import ServerContext
from octavo.server.json_response import json_response
from octavo.server.openapi import describe_answer

_HOLD_WAIT_S = 1.0
"""Below the time that a probe is given."""


class HealthStatus(msgspec.Struct):
    """A word, and where something is wrong the reason."""

    status: str


class StartupProgress(msgspec.Struct):
    """The answer to ``GET /health/startup``."""

    state: str
    phase: str
    phases_s: dict[str, float]


class ServerLoad(msgspec.Struct):
    """The answer to ``GET /health/load``."""

    open_requests: int
    idle_s: float


def build_router(context: ServerContext) -> APIRouter:
    """The routes, bound to ``context``."""
    router = APIRouter()

    status = describe_answer(HealthStatus, also={503: HealthStatus})

    @router.get("/health/live", **status)
    async def live() -> Response:
        """200 from the first moment, also while loading; 503 once the engine is dead."""
        state = context.engine.state
        return _answer(state is not EngineState.DEAD, str(state))

    @router.get("/health/loaded", **status)
    async def loaded() -> Response:
        """200 once the model is loaded, also while readiness waits for adapters."""
        return _answer(*_readiness(context))

    @router.get("/health", **status)
    @router.get("/health/ready", **status)
    @router.get("/ping", **status)
    @router.post("/ping", **status)
    async def ready() -> Response:
        """200 while requests are taken and the engine makes progress; else 503 with the reason."""
        is_ready, status = _readiness(context)
        hold = context.engine.adapters.hold
        if is_ready and hold.is_on:
            # So that whoever asks every few seconds learns of the end at once.
            await hold.wait(_HOLD_WAIT_S)
            is_ready, status = _readiness(context)
        if is_ready and hold.is_on:
            return _answer(False, "waiting for the word that no adapter is missing")
        return _answer(is_ready, status)

    @router.get("/health/startup", **describe_answer(StartupProgress))
    async def startup() -> Response:
        """Where loading is, and the seconds of each phase that has ended; always 200."""
        progress = context.engine.progress()
        state = str(context.engine.state)
        return json_response(StartupProgress(state, progress.phase, dict(progress.finished)))

    @router.get("/health/load", **describe_answer(ServerLoad))
    async def load() -> Response:
        """Generation requests open now, and for how many seconds there have been none."""
        idle_s = 0.0 if context.num_open else time.monotonic() - context.idle_since_s
        return json_response(ServerLoad(context.num_open, round(idle_s, 3)))

    return router


def _readiness(context: ServerContext) -> tuple[bool, str]:
    if context.is_leaving:
        return False, str(EngineState.DRAINING)
    state = context.engine.state
    if state is not EngineState.READY:
        phase = context.engine.progress().phase if state is EngineState.LOADING else ""
        return False, f"{state}: {phase}" if phase else str(state)
    stats = context.engine.stats()
    if stats.is_late:
        return False, f"stalled: no step has ended for {stats.last_progress_age_s:.0f} s"
    return True, str(state)


def _answer(is_good: bool, status: str) -> Response:
    return json_response(HealthStatus(status), 200 if is_good else 503)

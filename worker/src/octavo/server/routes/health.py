"""What probes ask. ``/health/live``: is the process worth keeping; ``/health/ready`` (and
``/health`` and ``/ping``, its older names): can a request be served now."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from octavo.engine.interface import EngineState
from octavo.server.context import ServerContext


def build_router(context: ServerContext) -> APIRouter:
    """The routes, bound to ``context``."""
    router = APIRouter()

    @router.get("/health/live")
    async def live() -> Response:
        """200 from the first moment, also while loading; 503 once the engine is dead."""
        state = context.engine.state
        return _answer(state is not EngineState.DEAD, str(state))

    @router.get("/health")
    @router.get("/health/ready")
    @router.get("/ping")
    @router.post("/ping")
    async def ready() -> Response:
        """200 while requests are taken and the engine makes progress; else 503 with the reason."""
        return _answer(*_readiness(context))

    return router


def _readiness(context: ServerContext) -> tuple[bool, str]:
    state = context.engine.state
    if state is not EngineState.READY:
        phase = context.engine.progress().phase if state is EngineState.LOADING else ""
        return False, f"{state}: {phase}" if phase else str(state)
    stats = context.engine.stats()
    if stats.is_late:
        return False, f"stalled: no step has ended for {stats.last_progress_age_s:.0f} s"
    return True, str(state)


def _answer(is_good: bool, status: str) -> Response:
    body = msgspec.json.encode({"status": status})
    return Response(body, 200 if is_good else 503, media_type="application/json")

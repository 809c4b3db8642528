"""For those who run the server: ``/version`` and ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from fastapi import APIRouter
from prometheus_client.core import Metric
from starlette.responses import Response

from octavo.engine.model_info import ModelInfo
from octavo.metrics.engine_metrics import adapter_metrics
from octavo.metrics.families import info_gauge
from octavo.metrics.page import MetricsPage, request_outcomes, startup_seconds
from octavo.server.context import ServerContext
from octavo.server.json_response import json_response
from octavo.server.openapi import describe_answer, describe_text
from octavo.version import __version__

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ServerVersion(msgspec.Struct):
    """The answer to ``GET /version``."""

    version: str


def build_router(context: ServerContext, *, has_metrics: bool = True) -> APIRouter:
    """The routes, bound to ``context``; ``/metrics`` may be another port's."""
    router = APIRouter()
    page = MetricsPage(lambda: _metrics(context))

    @router.get("/version", **describe_answer(ServerVersion))
    async def version() -> Response:
        """This server's version."""
        return json_response(ServerVersion(__version__))

    if has_metrics:

        @router.get("/metrics", **describe_text())
        async def metrics() -> Response:
            """Everything measured, for Prometheus. While loading, only how that goes."""
            return Response(page.render(), headers={"content-type": _CONTENT_TYPE})

    return router


def _metrics(context: ServerContext) -> Iterator[Metric]:
    engine = context.engine
    names = context.model_names()
    labels = {"model_name": names[0] if names else "", "engine": "0"}
    progress = engine.progress()
    yield from startup_seconds(progress.finished, progress.ready_s, labels)
    ledger = context.ledger
    num_open = len(list(ledger.open))
    yield from request_outcomes(ledger.outcomes, ledger.refusals, num_open, labels)
    if engine.info is None:
        return
    yield info_gauge("vllm:cache_config_info", "The KV cache.", _cache_facts(engine.info))
    stats = engine.stats()
    yield from context.ready_metrics(engine.info).collect(stats)
    if stats.adapters is not None:
        table = engine.adapters
        yield from adapter_metrics(stats.adapters, table.name_of, table.outcomes, labels)
        yield table.load_seconds.family(labels)


def _cache_facts(info: ModelInfo) -> dict[str, str]:
    return {
        "engine": "0",
        "block_size": str(info.block_size),
        "num_gpu_blocks": str(info.num_blocks),
        "enable_prefix_caching": str(info.enable_prefix_caching),
        "cache_dtype": info.dtype,
    }

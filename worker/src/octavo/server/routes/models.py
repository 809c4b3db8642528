"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from octavo.server.context import ServerContext
from octavo.server.errors import ApiError
from octavo.server.openapi import describe_answer
from octavo.server.protocol.answers import ModelCard, ModelList


def build_router(context: ServerContext) -> APIRouter:
    """The routes, bound to ``context``."""
    router = APIRouter()

    def cards() -> list[ModelCard]:
        info = context.ready_model()
        names = context.model_names()
        base = [ModelCard(name, info.created, info.name, info.max_model_len) for name in names]
        adapters = [
            ModelCard(
                entry.name,
                info.created,
                entry.source.public_name,
                info.max_model_len,
                parent=names[0],
            )
            for entry in context.engine.adapters.offered()
            if entry.name not in names  # remembered from when the model had another name
        ]
        return base + adapters

    @router.get("/v1/models", **describe_answer(ModelList, 503))
    async def list_models() -> Response:
        """The names that requests may use."""
        return _json(ModelList(cards()))

    @router.get("/v1/models/{model_id:path}", **describe_answer(ModelCard, 404, 503))
    async def get_model(model_id: str) -> Response:
        """One of them."""
        for card in cards():
            if card.id == model_id:
                return _json(card)
        context.engine.adapters.check_offered(model_id)
        names = ", ".join(map(repr, context.model_names()))
        raise ApiError(
            404,
            f"There is no model {model_id[:200]!r} here; this server serves {names}.",
            code="model_not_found",
            param="model",
        )

    return router


def _json(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")

"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from octavo.engine.adapter_entry import AdapterEntry
from octavo.engine.model_info import ModelInfo
from octavo.server.context import ServerContext
from octavo.server.errors import ApiError
from octavo.server.json_response import json_response
from octavo.server.openapi import describe_answer
from octavo.server.protocol.answers import ModelCard, ModelList


def build_router(context: ServerContext) -> APIRouter:
    """The routes, bound to ``context``."""
    router = APIRouter()

    def base_card(info: ModelInfo, name: str) -> ModelCard:
        return ModelCard(name, info.created, info.name, info.max_model_len)

    def adapter_card(info: ModelInfo, entry: AdapterEntry) -> ModelCard:
        base, root = context.model_names()[0], entry.source.public_name
        return ModelCard(entry.name, info.created, root, info.max_model_len, parent=base)

    @router.get("/v1/models", **describe_answer(ModelList, 503))
    async def list_models() -> Response:
        """The names that requests may use."""
        info, names = context.ready_model(), context.model_names()
        adapters = [
            adapter_card(info, entry)
            for entry in context.engine.adapters.offered()
            if entry.name not in names  # remembered from when the model had another name
        ]
        return json_response(ModelList([*(base_card(info, name) for name in names), *adapters]))

    @router.get("/v1/models/{model_id:path}", **describe_answer(ModelCard, 404, 503))
    async def get_model(model_id: str) -> Response:
        """One of them."""
        info, names = context.ready_model(), context.model_names()
        if model_id in names:
            return json_response(base_card(info, model_id))
        entry = context.engine.adapters.offered_entry(model_id)
        if entry is not None:
            return json_response(adapter_card(info, entry))
        context.engine.adapters.check_offered(model_id)
        raise ApiError(
            404,
            f"There is no model {model_id[:200]!r} here; this server serves "
            f"{context.shown_names()}.",
            code="model_not_found",
            param="model",
        )

    return router

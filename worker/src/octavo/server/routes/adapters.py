"""For administrators: which LoRA adapters there are, and loading and unloading them.

Bodies are vLLM's. A load is atomic and idempotent by the digest of the adapter's files; loading a
name again replaces it, and requests under way end on what they began with.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.adapter_entry import AdapterEntry, Generation
from octavo.engine.adapter_table import AdapterTable
from octavo.errors import OctavoError
from octavo.lora.adapter_source import AdapterSource
from octavo.outputs import AdapterStats
from octavo.server.body import read_model
from octavo.server.context import ServerContext
from octavo.server.errors import ApiError, bad_request, translate
from octavo.server.json_response import json_response
from octavo.server.openapi import describe, describe_answer
from octavo.server.protocol.fields import MAX_INT32, RequestBody

_MAX_LOAD_S = 3600.0
_MAX_UNLOAD_S = 3600.0


class LoadAdapterRequest(RequestBody):
    """``POST /v1/load_lora_adapter``."""

    lora_name: str = Field(min_length=1, max_length=512, description="What requests call it.")
    lora_path: str = Field(
        min_length=1,
        max_length=4096,
        description="A folder, hf://ORG/NAME[@REVISION] or s3://BUCKET/PREFIX.",
    )
    revision: str | None = Field(
        None, min_length=1, max_length=256, description="On the hub, instead of @REVISION."
    )
    digest: str | None = Field(
        None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="What GET /v1/adapters shows of it: files that have another are not loaded.",
    )
    timeout: float | None = Field(
        None, gt=0, le=_MAX_LOAD_S, description="Seconds to wait; loading goes on after them."
    )
    load_inplace: bool = Field(False, description="Taken; a name is always replaced in place.")
    lazy: bool = Field(False, description="Only make the name known: its first request loads it.")


class UnloadAdapterRequest(RequestBody):
    """``POST /v1/unload_lora_adapter``."""

    lora_name: str = Field(min_length=1, max_length=512)
    lora_int_id: int | None = Field(None, ge=0, le=MAX_INT32, description="Taken, and not needed.")
    timeout: float = Field(
        30.0, gt=0, le=_MAX_UNLOAD_S, description="Seconds its requests may still take."
    )
    missing_ok: bool = Field(False, description="Whether a name that is not there is no error.")


class AdapterCard(msgspec.Struct):
    """What every description of an adapter has, beside the facts of its weights."""

    id: str
    name: str
    state: str
    path: str | None
    revision: str | None
    """The hub's commit; null for other sources. Of what is not loaded, what it is to be."""
    digest: str | None
    """Of the files; of what is not loaded, what they must have, if that was said."""
    generation: int | None
    message: str | None
    """Why it could not be loaded, or read again, when last tried."""


class AdapterList(msgspec.Struct):
    """The answer to ``GET /v1/adapters``."""

    object: str
    data: list[AdapterCard]
    held: bool
    """Whether readiness waits for the word that no adapter is missing."""


class Completed(msgspec.Struct):
    """The answer to ``POST /v1/adapters/complete``."""

    held: bool
    """Whether readiness waited for it."""


class Unloaded(msgspec.Struct):
    """The answer to ``POST /v1/unload_lora_adapter``."""

    id: str
    state: str
    requests_ended: int


def build_router(context: ServerContext) -> APIRouter:
    """The routes, bound to ``context``; only administrators may reach them."""
    router = APIRouter()

    @router.get("/v1/adapters", **describe_answer(AdapterList, 503))
    async def list_adapters() -> Response:
        """Every adapter: where it is, what it is, who uses it."""
        context.ready_model()
        hold = context.engine.adapters.hold
        hold.heard()
        return json_response({"object": "list", "data": _all(context), "held": hold.is_on})

    @router.post("/v1/adapters/complete", **describe_answer(Completed, 503))
    async def complete_adapters() -> Response:
        """No adapter is missing: be ready, where that was waited for."""
        context.ready_model()
        hold = context.engine.adapters.hold
        was_on = hold.is_on
        hold.end()
        return json_response(Completed(was_on))

    @router.post(
        "/v1/load_lora_adapter",
        **describe(LoadAdapterRequest, answer=AdapterCard, errors=(409,)),
    )
    async def load_adapter(request: Request) -> Response:
        """Load an adapter, or replace what its name stands for."""
        context.ready_model()
        body = await read_model(request, LoadAdapterRequest)
        if body.lora_name in context.model_names():
            raise bad_request(
                f"lora_name is {body.lora_name!r}, which is the base model's name; choose another.",
                "lora_name",
            )
        table = context.engine.adapters
        source = AdapterSource(body.lora_path, body.revision, body.digest)
        try:
            entry = await table.load(body.lora_name, source, body.timeout, is_lazy=body.lazy)
        except OctavoError as error:
            raise _answer_to(error) from error
        return json_response(_describe(entry, context.engine.stats().adapters))

    @router.post("/v1/unload_lora_adapter", **describe(UnloadAdapterRequest, answer=Unloaded))
    async def unload_adapter(request: Request) -> Response:
        """Forget an adapter: its name at once, its weights when its requests have ended."""
        context.ready_model()
        body = await read_model(request, UnloadAdapterRequest)
        table, num_ended = context.engine.adapters, 0
        if body.lora_name in table or not body.missing_ok:
            num_ended = await table.unload(body.lora_name, body.timeout)
        return json_response(
            {"id": body.lora_name, "state": "unloaded", "requests_ended": num_ended}
        )

    return router


def _answer_to(error: OctavoError) -> ApiError:
    answer = translate(error)
    return ApiError(500, str(error), code="adapter_failed") if answer is None else answer


def _all(context: ServerContext) -> list[dict[str, Any]]:
    table: AdapterTable = context.engine.adapters
    stats = context.engine.stats().adapters
    described = [_describe(entry, stats) for entry in table.entries()]
    for name, generation in table.draining():
        described.append(_card(name, "draining") | _facts(generation, stats))
    return described


def _describe(entry: AdapterEntry, stats: AdapterStats | None) -> dict[str, Any]:
    described = _card(entry.name, entry.state, entry.source, entry.message)
    if entry.current is not None:
        described |= _facts(entry.current, stats)
    return described


def _card(
    name: str, state: str, source: AdapterSource | None = None, message: str | None = None
) -> dict[str, Any]:
    path, revision, digest = None, None, None
    if source is not None:
        path, revision, digest = source.path, source.revision, source.digest
    card = AdapterCard(name, name, str(state), path, revision, digest, None, message)
    return {"object": "adapter", **msgspec.structs.asdict(card)}


def _facts(generation: Generation, stats: AdapterStats | None) -> dict[str, Any]:
    slot = None if stats is None else stats.resident.get(generation.id)
    is_in_host = stats is not None and generation.id in stats.in_host_memory
    return {
        "generation": generation.id,
        "digest": generation.digest,
        "revision": generation.revision,
        "rank": generation.rank,
        "size_bytes": generation.size_bytes,
        "base_model": generation.base_model,
        "residency": "device" if slot is not None else "host" if is_in_host else "disk",
        "slot": slot,
        "requests": generation.num_open,
    }

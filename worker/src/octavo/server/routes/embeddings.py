"""``POST /v1/embeddings``: the model's hidden states of a prompt, pooled into a vector."""

from __future__ import annotations

import sys
from array import array
from base64 import b64encode
from collections.abc import AsyncIterator

from fastapi import APIRouter
from starlette.responses import Response

from octavo.engine.model_info import ModelInfo
from octavo.engine.pooling import checked_pooling
from octavo.engine.request_options import RequestOptions
from octavo.outputs import GenerationEvent
from octavo.sampling_params import SamplingParams
from octavo.server.context import ServerContext
from octavo.server.errors import ApiError
from octavo.server.exchange import Exchange
from octavo.server.generation import GenerationJob
from octavo.server.openapi import describe
from octavo.server.prompts import check_prompts, encode_prompt
from octavo.server.protocol.embeddings import (
    Embedding,
    EmbeddingRequest,
    Embeddings,
    EmbeddingUsage,
)
from octavo.server.streaming import GenerationAnswer


def build_router(context: ServerContext) -> APIRouter:
    """The route, bound to ``context``."""
    router = APIRouter()

    @router.post("/v1/embeddings", **describe(EmbeddingRequest, answer=Embeddings))
    async def create_embeddings() -> Response:
        """Vectors of texts, by the model's hidden states."""
        return EmbeddingAnswer(context)

    return router


class EmbeddingAnswer(GenerationAnswer[EmbeddingRequest]):
    """Takes inputs as text or token ids; answers with a vector for each."""

    body_type = EmbeddingRequest

    def __init__(self, context: ServerContext) -> None:
        super().__init__(context)
        self._names["prompt"] = "input"

    async def _job(self, body: EmbeddingRequest, info: ModelInfo) -> GenerationJob:
        check_prompts(body.input, info, "input")
        pooling = checked_pooling(info, body.pooling, body.dimensions, body.normalize)
        truncation = body.truncation(info.max_model_len)
        prompts = [
            await encode_prompt(
                self._context.engine,
                one,
                add_special_tokens=body.add_special_tokens,
                truncation=truncation,
            )
            for one in body.input
        ]
        options = RequestOptions(cache_salt=body.cache_salt, pooling=pooling)
        return GenerationJob(prompts, SamplingParams(max_tokens=0, detokenize=False), options)

    async def _collect(
        self, events: AsyncIterator[GenerationEvent], exchange: Exchange[EmbeddingRequest]
    ) -> Embeddings:
        vectors: dict[int, bytes] = {}
        async for event in events:
            if event.embedding is not None:
                vectors[event.index] = event.embedding
            elif event.finish_reason is not None:
                raise ApiError(
                    503,
                    f"The input was not read to its end ({event.finish_reason}); retry.",
                    code="not_finished",
                )
        usage, as_text = exchange.generation.usage, exchange.body.encoding_format == "base64"
        head = exchange.head("embd")
        del head["system_fingerprint"]
        return Embeddings(
            **head,
            data=[Embedding(index, _written(vectors[index], as_text)) for index in sorted(vectors)],
            usage=EmbeddingUsage(usage.prompt_tokens, usage.prompt_tokens),
        )


def _written(vector: bytes, as_text: bool) -> list[float] | str:
    """A vector in float32 of this machine's byte order as the client wants it."""
    numbers = array("f", vector)
    if not as_text:
        return numbers.tolist()
    if sys.byteorder == "big":
        numbers.byteswap()
    return b64encode(numbers.tobytes()).decode()

"""``POST /v1/responses``, whole and as events. Nothing is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from fastapi import APIRouter
from starlette.responses import Response

from octavo.engine.interface import ModelInfo
from octavo.outputs import GenerationEvent, TokenLogprobs
from octavo.server.chunks import StreamWriter
from octavo.server.context import ServerContext
from octavo.server.conversation import render_conversation
from octavo.server.errors import ApiError
from octavo.server.exchange import Exchange, GatheredChoice
from octavo.server.generation import GenerationJob
from octavo.server.logprobs import LogprobWriter
from octavo.server.openapi import describe
from octavo.server.protocol.response_answers import (
    IncompleteDetails,
    OutputLogprob,
    OutputMessage,
    ResponseAnswer,
    ResponseReasoning,
    ResponseUsage,
    TextFormat,
)
from octavo.server.protocol.responses import ResponseRequest
from octavo.server.response_events import ResponseEvents, message_of
from octavo.server.streaming import GenerationAnswer

_INCOMPLETE = {"length": "max_output_tokens"}


def build_router(context: ServerContext) -> APIRouter:
    """The route, bound to ``context``."""
    router = APIRouter()

    @router.post(
        "/v1/responses", **describe(ResponseRequest, answer=ResponseAnswer, is_streamable=True)
    )
    async def create_response() -> Response:
        """Answer instructions and items."""
        return ResponseOfModel(context)

    return router


class ResponseOfModel(GenerationAnswer[ResponseRequest]):
    """Renders the items with the model's template; answers with a message."""

    body_type = ResponseRequest

    def __init__(self, context: ServerContext) -> None:
        super().__init__(context)
        self._events: ResponseEvents | None = None
        self._is_opened = False

    async def _job(self, body: ResponseRequest, info: ModelInfo) -> GenerationJob:
        params = body.to_sampling_params(info.sampling_defaults)
        prompt = await render_conversation(self._context.engine, body.conversation())
        return GenerationJob([prompt], params, body.priority, body.cache_salt)

    def _chunks(self, exchange: Exchange[ResponseRequest]) -> ResponseEvents:
        events: ResponseEvents

        def snapshot(message: OutputMessage | None) -> ResponseAnswer:
            return self._snapshot(exchange, message, None if message is None else events.gathered)

        def logprobs(event: GenerationEvent) -> list[OutputLogprob]:
            return self._logprobs(event.logprobs or ())

        events = self._events = ResponseEvents(
            f"msg_{exchange.answer_id}",
            snapshot,
            logprobs if exchange.body.tells_logprobs else None,
        )
        return events

    def _opening(
        self, event: GenerationEvent, chunks: StreamWriter, exchange: Exchange[ResponseRequest]
    ) -> bytes:
        if self._is_opened:
            return b""
        self._is_opened = True
        return cast(ResponseEvents, chunks).opening()

    def _failed(self, answer: ApiError) -> bytes:
        assert self._events is not None, "a stream has begun"
        return self._events.failed(answer)

    async def _collect(
        self, events: AsyncIterator[GenerationEvent], exchange: Exchange[ResponseRequest]
    ) -> ResponseAnswer:
        gathered = GatheredChoice()
        async for event in events:
            gathered.add(event)
        logprobs = self._logprobs(gathered.logprobs) if exchange.body.tells_logprobs else []
        message = message_of(f"msg_{exchange.answer_id}", gathered, logprobs)
        return self._snapshot(exchange, message, gathered)

    def _snapshot(
        self,
        exchange: Exchange[ResponseRequest],
        message: OutputMessage | None,
        gathered: GatheredChoice | None,
    ) -> ResponseAnswer:
        """The response as of now; with a message, as of its end."""
        body, params = exchange.body, exchange.job.params
        answer = ResponseAnswer(
            id=f"resp_{exchange.answer_id}",
            created_at=exchange.created,
            model=exchange.model,
            status="in_progress",
            output=[],
            temperature=params.temperature,
            top_p=params.top_p,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            prompt_cache_key=body.prompt_cache_key,
            reasoning=ResponseReasoning(body.reasoning.effort if body.reasoning else None),
            safety_identifier=body.safety_identifier,
            text=TextFormat(_format_of(body)),
            top_logprobs=body.top_logprobs or 0,
            user=body.user,
        )
        if message is None or gathered is None:
            return answer
        answer.output = [message]
        answer.usage = ResponseUsage.of(exchange.generation.usage)
        if message.status == "completed":
            answer.status = "completed"
        else:
            answer.status = "incomplete"
            answer.incomplete_details = IncompleteDetails(_why_incomplete(gathered))
        return answer

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> list[OutputLogprob]:
        content = LogprobWriter(self._context.engine.tokenizer).chat(tokens).content
        return [
            OutputLogprob(one.token, one.logprob, one.bytes, one.top_logprobs) for one in content
        ]


def _format_of(body: ResponseRequest) -> dict[str, Any]:
    asked = body.output_format
    if asked is None:
        return {"type": "text"}
    return asked.model_dump(by_alias=True, exclude_none=True)


def _why_incomplete(choice: GatheredChoice) -> str:
    """OpenAI's word for a limit; ours for what it does not have."""
    if choice.stop_reason == "deadline":
        return "deadline"
    reason = choice.finish_reason or "abort"
    return _INCOMPLETE.get(reason, reason)

"""``POST /v1/responses``, whole and as events. Nothing is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from fastapi import APIRouter
from starlette.responses import Response

from octavo.engine.model_info import ModelInfo
from octavo.outputs import GenerationEvent, TokenLogprobs
from octavo.server.chunks import StreamWriter
from octavo.server.context import ServerContext
from octavo.server.conversation import render_conversation
from octavo.server.errors import ApiError
from octavo.server.exchange import Exchange, GatheredChoice
from octavo.server.generation import GenerationJob
from octavo.server.logprobs import LogprobWriter
from octavo.server.message_plan import MessagePlan
from octavo.server.message_reader import MessageReader
from octavo.server.openapi import describe
from octavo.server.protocol.answers import ChatMessage
from octavo.server.protocol.response_answers import (
    IncompleteDetails,
    OutputItem,
    OutputLogprob,
    ResponseAnswer,
    ResponseReasoning,
    ResponseUsage,
    TextFormat,
)
from octavo.server.protocol.responses import ResponseRequest
from octavo.server.protocol.tools import AllowedToolChoice, ChatTool, NamedToolChoice
from octavo.server.response_events import ResponseEvents, items_of
from octavo.server.streaming import GenerationAnswer

_NAMES = {"prompt": "input", "messages": "input", "max_tokens": "max_output_tokens"}
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
        self._names |= _NAMES
        self._events: ResponseEvents | None = None
        self._reader: MessageReader | None = None
        """None: the text is the message."""
        self._is_opened = False

    async def _job(self, body: ResponseRequest, info: ModelInfo) -> GenerationJob:
        engine = self._context.engine
        params = body.to_sampling_params(info.sampling_defaults)
        prompt = await render_conversation(
            engine, body.conversation(), body.usable_tools(), info.max_model_len
        )
        message_format = self._context.message_format()
        plan = MessagePlan.of(body, params, message_format, prompt, engine.tokenizer)
        if not plan.is_plain:
            self._reader = MessageReader(plan, 1, tells_reasoning=body.include_reasoning)
        return GenerationJob([prompt], plan.params, plan.options(body.cache_salt))

    def _chunks(self, exchange: Exchange[ResponseRequest]) -> ResponseEvents:
        def snapshot(items: list[OutputItem], choice: GatheredChoice | None) -> ResponseAnswer:
            return self._snapshot(exchange, items, choice)

        def logprobs(event: GenerationEvent) -> list[OutputLogprob]:
            return self._logprobs(event.logprobs or ())

        write_logprobs = logprobs if exchange.body.tells_logprobs else None
        self._events = ResponseEvents(exchange.answer_id, snapshot, write_logprobs, self._reader)
        return self._events

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
        message = ChatMessage(gathered.text)
        if self._reader is not None:
            message = self._reader.message(0, gathered.text)
        logprobs = self._logprobs(gathered.logprobs) if exchange.body.tells_logprobs else []
        is_complete = gathered.finish_reason == "stop"
        items = items_of(message, exchange.answer_id, logprobs, is_complete=is_complete)
        return self._snapshot(exchange, items, gathered)

    def _snapshot(
        self,
        exchange: Exchange[ResponseRequest],
        items: list[OutputItem],
        gathered: GatheredChoice | None,
    ) -> ResponseAnswer:
        """The response as of now; with a choice, as of its end."""
        body, params = exchange.body, exchange.job.params
        answer = ResponseAnswer(
            id=f"resp_{exchange.answer_id}",
            created_at=exchange.created,
            model=exchange.model,
            status="in_progress",
            output=items,
            temperature=params.temperature,
            top_p=params.top_p,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            parallel_tool_calls=body.parallel_tool_calls is not False,
            prompt_cache_key=body.prompt_cache_key,
            reasoning=ResponseReasoning(body.reasoning.effort if body.reasoning else None),
            safety_identifier=body.safety_identifier,
            text=TextFormat(_format_of(body)),
            tool_choice=_choice_of(body),
            tools=[_tool_of(tool) for tool in body.tools or ()],
            top_logprobs=body.top_logprobs or 0,
            user=body.user,
        )
        if gathered is None:
            return answer
        answer.usage = ResponseUsage.of(exchange.generation.usage)
        if gathered.finish_reason == "stop":
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


def _tool_of(tool: ChatTool) -> dict[str, Any]:
    """As the Responses API writes it."""
    return {"type": "function", **tool.function.model_dump()}


def _choice_of(body: ResponseRequest) -> str | dict[str, Any]:
    choice = body.tool_choice
    if isinstance(choice, NamedToolChoice):
        return {"type": "function", "name": choice.function.name}
    if isinstance(choice, AllowedToolChoice):
        allowed = choice.allowed_tools
        tools = [{"type": "function", "name": each.function.name} for each in allowed.tools]
        return {"type": choice.type, "mode": allowed.mode, "tools": tools}
    return choice or "auto"


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

"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

from fastapi import APIRouter
from msgspec import UNSET
from starlette.responses import Response

from octavo.engine.interface import ModelInfo
from octavo.outputs import GenerationEvent
from octavo.server.chunks import ChatChunks, ChunkWriter
from octavo.server.context import ServerContext
from octavo.server.errors import bad_request
from octavo.server.exchange import Exchange, GatheredChoice
from octavo.server.generation import GenerationJob
from octavo.server.logprobs import LogprobWriter
from octavo.server.openapi import describe_generation
from octavo.server.protocol.answers import ChatChoice, ChatCompletion, ChatMessage, UsageInfo
from octavo.server.protocol.chat import ChatCompletionRequest
from octavo.server.streaming import GenerationAnswer


def build_router(context: ServerContext) -> APIRouter:
    """The route, bound to ``context``."""
    router = APIRouter()

    @router.post("/v1/chat/completions", **describe_generation(ChatCompletionRequest))
    async def create_chat_completion() -> Response:
        """Continue a conversation."""
        return ChatAnswer(context)

    return router


class ChatAnswer(GenerationAnswer[ChatCompletionRequest]):
    """Renders the conversation with the model's template; answers with messages."""

    body_type = ChatCompletionRequest

    def __init__(self, context: ServerContext) -> None:
        super().__init__(context)
        self._has_roles = False

    async def _job(self, body: ChatCompletionRequest, info: ModelInfo) -> GenerationJob:
        engine = self._context.engine
        if not engine.has_chat_template:
            raise bad_request(
                "This model has no chat template; use /v1/completions, "
                "or start the server with --chat-template FILE.",
                "messages",
                "no_chat_template",
            )
        params = body.to_sampling_params(info.sampling_defaults)
        prompt = await engine.render_chat(
            [message.for_template() for message in body.messages],
            None,
            add_generation_prompt=body.add_generation_prompt,
            **(body.chat_template_kwargs or {}),
        )
        return GenerationJob([prompt], params, body.priority, body.cache_salt)

    def _chunks(self, exchange: Exchange[ChatCompletionRequest]) -> ChatChunks:
        body, options = exchange.body, exchange.body.stream_options
        return ChatChunks(
            {"object": "chat.completion.chunk", **exchange.head("chatcmpl")},
            exchange.generation.usage,
            LogprobWriter(self._context.engine.tokenizer) if body.logprobs else None,
            num_choices=exchange.job.num_choices,
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
            return_token_ids=bool(body.return_token_ids),
        )

    def _opening(
        self, event: GenerationEvent, chunks: ChunkWriter, exchange: Exchange[ChatCompletionRequest]
    ) -> bytes:
        if self._has_roles:
            return b""
        self._has_roles = True
        role = cast(ChatChunks, chunks).role
        choices = range(exchange.job.num_choices)
        return b"".join(role(index, event.prompt_token_ids) for index in choices)

    async def _collect(
        self, events: AsyncIterator[GenerationEvent], exchange: Exchange[ChatCompletionRequest]
    ) -> ChatCompletion:
        gathered = [GatheredChoice() for _ in range(exchange.job.num_choices)]
        prompt_ids: list[int] | None = None
        async for event in events:
            gathered[event.index].add(event)
            prompt_ids = prompt_ids or event.prompt_token_ids
        body = exchange.body
        writer = LogprobWriter(self._context.engine.tokenizer) if body.logprobs else None
        return ChatCompletion(
            **exchange.head("chatcmpl"),
            choices=[
                ChatChoice(
                    index,
                    ChatMessage(choice.text),
                    writer.chat(choice.logprobs) if writer else None,
                    choice.finish_reason,
                    choice.stop_reason,
                    choice.token_ids if body.return_token_ids else UNSET,
                )
                for index, choice in enumerate(gathered)
            ],
            usage=UsageInfo.of(exchange.generation.usage),
            prompt_token_ids=prompt_ids if body.return_token_ids and prompt_ids else UNSET,
        )

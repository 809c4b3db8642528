"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

from fastapi import APIRouter
from msgspec import UNSET
from starlette.responses import Response

from octavo.engine.model_info import ModelInfo
from octavo.outputs import GenerationEvent
from octavo.server.chunks import ChatChunks, StreamWriter
from octavo.server.context import ServerContext
from octavo.server.conversation import render_conversation
from octavo.server.exchange import AskedPrompt, Exchange, GatheredChoice
from octavo.server.generation import GenerationJob
from octavo.server.logprobs import LogprobWriter
from octavo.server.message_plan import MessagePlan
from octavo.server.message_reader import MessageReader
from octavo.server.openapi import describe
from octavo.server.protocol.answers import ChatChoice, ChatCompletion, ChatMessage, UsageInfo
from octavo.server.protocol.chat import ChatCompletionRequest
from octavo.server.streaming import GenerationAnswer


def build_router(context: ServerContext) -> APIRouter:
    """The route, bound to ``context``."""
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        **describe(ChatCompletionRequest, answer=ChatCompletion, is_streamable=True),
    )
    async def create_chat_completion() -> Response:
        """Continue a conversation."""
        return ChatAnswer(context)

    return router


class ChatAnswer(GenerationAnswer[ChatCompletionRequest]):
    """Renders the conversation with the model's template; answers with messages."""

    body_type = ChatCompletionRequest

    def __init__(self, context: ServerContext) -> None:
        super().__init__(context)
        self._names["prompt"] = "messages"
        self._prompt = AskedPrompt()
        self._has_roles = False
        self._reader: MessageReader | None = None
        """None: the text is the message."""

    async def _job(self, body: ChatCompletionRequest, info: ModelInfo) -> GenerationJob:
        if body.max_completion_tokens is not None:
            self._names["max_tokens"] = "max_completion_tokens"
        params = body.to_sampling_params(info.sampling_defaults)
        engine = self._context.engine
        truncation = body.truncation(info.max_model_len, params.max_tokens)
        most_tokens = info.max_model_len if truncation is None else None
        prompt = await render_conversation(engine, body, body.usable_tools(), most_tokens)
        if truncation is not None:
            prompt = truncation.cut(prompt)
        message_format = self._context.message_format()
        plan = MessagePlan.of(body, params, message_format, prompt, engine.tokenizer)
        if not plan.is_plain:
            self._reader = MessageReader(
                plan, plan.params.n, tells_reasoning=body.include_reasoning
            )
        return GenerationJob([prompt], plan.params, plan.options(body.cache_salt))

    def _chunks(self, exchange: Exchange[ChatCompletionRequest]) -> ChatChunks:
        body, options = exchange.body, exchange.body.stream_options
        return ChatChunks(
            {"object": "chat.completion.chunk", **exchange.head("chatcmpl")},
            exchange.generation.usage,
            self._logprob_writer(body) if body.logprobs else None,
            num_choices=exchange.job.num_choices,
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
            return_token_ids=bool(body.return_token_ids),
            reader=self._reader,
        )

    def _opening(
        self,
        event: GenerationEvent,
        chunks: StreamWriter,
        exchange: Exchange[ChatCompletionRequest],
    ) -> bytes:
        if self._has_roles:
            return b""
        self._has_roles = True
        self._prompt.take(event)
        body, writer = exchange.body, cast(ChatChunks, chunks)
        told: dict[str, Any] = {}
        if body.return_token_ids:
            told["prompt_token_ids"] = self._prompt.token_ids
        if body.return_prompt_text:
            told["prompt_text"] = self._prompt_text()
        echoed, choices = body.echoed_text, range(exchange.job.num_choices)
        opening = [writer.role(index, told) for index in choices]
        if echoed:
            opening += [writer.echo(index, echoed) for index in choices]
        return b"".join(opening)

    async def _collect(
        self, events: AsyncIterator[GenerationEvent], exchange: Exchange[ChatCompletionRequest]
    ) -> ChatCompletion:
        gathered = [GatheredChoice() for _ in range(exchange.job.num_choices)]
        async for event in events:
            gathered[event.index].add(event)
            self._prompt.take(event)
        body = exchange.body
        writer = self._logprob_writer(body)
        whole = ChatCompletion(
            **exchange.head("chatcmpl"),
            choices=[
                ChatChoice(
                    index,
                    self._message(index, body.echoed_text, choice),
                    writer.chat(choice.logprobs) if body.logprobs else None,
                    choice.finish_reason,
                    choice.stop_reason,
                    choice.token_ids if body.return_token_ids else UNSET,
                )
                for index, choice in enumerate(gathered)
            ],
            usage=UsageInfo.of(exchange.generation.usage),
        )
        if body.return_token_ids:
            whole.prompt_token_ids = self._prompt.token_ids
        if body.return_prompt_text:
            whole.prompt_text = self._prompt_text()
        if body.prompt_logprobs is not None:
            whole.prompt_logprobs = writer.prompt(self._prompt.scores, body.prompt_logprobs)
        return whole

    def _message(self, index: int, echoed: str, choice: GatheredChoice) -> ChatMessage:
        if self._reader is None:
            return ChatMessage(echoed + choice.text)
        message = self._reader.message(index, choice.text)
        choice.finish_reason = self._reader.finish_reason(index, choice.finish_reason)
        if echoed:
            message.content = echoed + (message.content or "")
        return message

    def _logprob_writer(self, body: ChatCompletionRequest) -> LogprobWriter:
        as_token_ids = bool(body.return_tokens_as_token_ids)
        return LogprobWriter(self._context.engine.tokenizer, as_token_ids=as_token_ids)

    def _prompt_text(self) -> str:
        tokenizer = self._context.engine.tokenizer
        assert tokenizer is not None, "a conversation was rendered"
        return tokenizer.decode(self._prompt.token_ids, skip_special_tokens=False)

"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import cast

from fastapi import APIRouter
from msgspec import UNSET
from starlette.responses import Response

from octavo.engine.interface import ModelInfo
from octavo.outputs import GenerationEvent
from octavo.server.chunks import ChunkWriter, CompletionChunks
from octavo.server.context import ServerContext
from octavo.server.errors import bad_request
from octavo.server.exchange import Exchange, GatheredChoice
from octavo.server.generation import GenerationJob
from octavo.server.logprobs import LogprobWriter
from octavo.server.openapi import describe_generation
from octavo.server.protocol.answers import Completion, CompletionChoice, UsageInfo
from octavo.server.protocol.completion import CompletionRequest
from octavo.server.streaming import GenerationAnswer


def build_router(context: ServerContext) -> APIRouter:
    """The route, bound to ``context``."""
    router = APIRouter()

    @router.post("/v1/completions", **describe_generation(CompletionRequest))
    async def create_completion() -> Response:
        """Continue a text, or several."""
        return CompletionAnswer(context)

    return router


class CompletionAnswer(GenerationAnswer[CompletionRequest]):
    """Takes prompts as text or token ids; answers with text."""

    body_type = CompletionRequest

    def __init__(self, context: ServerContext) -> None:
        super().__init__(context)
        self._echoed: set[int] = set()

    async def _job(self, body: CompletionRequest, info: ModelInfo) -> GenerationJob:
        self._check_prompts(body, info)
        params = body.to_sampling_params(info.sampling_defaults)
        return GenerationJob(body.prompt, params, body.priority, body.cache_salt)

    def _check_prompts(self, body: CompletionRequest, info: ModelInfo) -> None:
        prompts: Sequence[str | list[int]] = body.prompt
        for number, prompt in enumerate(prompts):
            if isinstance(prompt, str):
                if not info.has_tokenizer:
                    raise bad_request(
                        "prompt is text and this server runs without a tokenizer; "
                        "send token ids, or start it without --skip-tokenizer-init.",
                        "prompt",
                    )
            elif (largest := max(prompt)) >= info.vocab_size:
                raise bad_request(
                    f"prompt {number} holds the token id {largest}; the model's ids end at "
                    f"{info.vocab_size - 1}. Encode the text with this model's tokenizer.",
                    "prompt",
                )
        if body.echo and not info.has_tokenizer:
            raise bad_request(
                "echo is true and this server runs without a tokenizer; leave echo out.", "echo"
            )

    def _chunks(self, exchange: Exchange[CompletionRequest]) -> CompletionChunks:
        body, options = exchange.body, exchange.body.stream_options
        return CompletionChunks(
            {"object": "text_completion", **exchange.head("cmpl")},
            exchange.generation.usage,
            self._logprob_writer(body),
            num_choices=exchange.job.num_choices,
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
            return_token_ids=bool(body.return_token_ids),
        )

    def _opening(
        self, event: GenerationEvent, chunks: ChunkWriter, exchange: Exchange[CompletionRequest]
    ) -> bytes:
        if not exchange.body.echo or event.index in self._echoed:
            return b""
        self._echoed.add(event.index)
        text = self._prompt_text(exchange.body, event.index)
        return cast(CompletionChunks, chunks).echo(event.index, text)

    async def _collect(
        self, events: AsyncIterator[GenerationEvent], exchange: Exchange[CompletionRequest]
    ) -> Completion:
        body = exchange.body
        gathered = [GatheredChoice() for _ in range(exchange.job.num_choices)]
        prompt_ids: dict[int, list[int]] = {}
        async for event in events:
            gathered[event.index].add(event)
            if event.prompt_token_ids is not None:
                prompt_ids[event.index // exchange.job.params.n] = event.prompt_token_ids
        writer = self._logprob_writer(body)
        choices = []
        for index, choice in enumerate(gathered):
            echo = self._prompt_text(body, index) if body.echo else ""
            written = CompletionChoice(
                index,
                echo + choice.text,
                writer.completion(choice.logprobs, 0) if writer else None,
                choice.finish_reason,
                choice.stop_reason,
            )
            if body.return_token_ids:
                written.token_ids = choice.token_ids
                written.prompt_token_ids = prompt_ids.get(index // exchange.job.params.n, UNSET)
            choices.append(written)
        usage = UsageInfo.of(exchange.generation.usage)
        return Completion(**exchange.head("cmpl"), choices=choices, usage=usage)

    def _logprob_writer(self, body: CompletionRequest) -> LogprobWriter | None:
        if body.logprobs is None:
            return None
        return LogprobWriter(self._context.engine.tokenizer)

    def _prompt_text(self, body: CompletionRequest, index: int) -> str:
        prompt = body.prompt[index // (body.n or 1)]
        if isinstance(prompt, str):
            return prompt
        tokenizer = self._context.engine.tokenizer
        assert tokenizer is not None, "checked with the prompts"
        return tokenizer.decode(prompt, skip_special_tokens=body.skip_special_tokens)

"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import cast

from fastapi import APIRouter
from starlette.responses import Response

from octavo.engine.model_info import ModelInfo
from octavo.engine.request_options import RequestOptions
from octavo.outputs import GenerationEvent
from octavo.server.chunks import CompletionChunks, StreamWriter
from octavo.server.context import ServerContext
from octavo.server.errors import bad_request
from octavo.server.exchange import AskedPrompt, Exchange, GatheredChoice
from octavo.server.generation import GenerationJob
from octavo.server.logprobs import LogprobWriter, TextOffsets
from octavo.server.openapi import describe
from octavo.server.prompts import check_prompts, encode_prompt
from octavo.server.protocol.answers import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    UsageInfo,
)
from octavo.server.protocol.completion import CompletionRequest
from octavo.server.streaming import GenerationAnswer


def build_router(context: ServerContext) -> APIRouter:
    """The route, bound to ``context``."""
    router = APIRouter()

    @router.post(
        "/v1/completions", **describe(CompletionRequest, answer=Completion, is_streamable=True)
    )
    async def create_completion() -> Response:
        """Continue a text, or several."""
        return CompletionAnswer(context)

    return router


class CompletionAnswer(GenerationAnswer[CompletionRequest]):
    """Takes prompts as text or token ids; answers with text."""

    body_type = CompletionRequest

    def __init__(self, context: ServerContext) -> None:
        super().__init__(context)
        self._prompts: list[AskedPrompt] = []
        self._opened: set[int] = set()

    async def _job(self, body: CompletionRequest, info: ModelInfo) -> GenerationJob:
        check_prompts(body.prompt, info, "prompt")
        if body.echo and not info.has_tokenizer:
            raise bad_request(
                "echo is true and this server runs without a tokenizer; leave echo out.", "echo"
            )
        params = body.to_sampling_params(info.sampling_defaults)
        truncation = body.truncation(info.max_model_len, params.max_tokens)
        encode = partial(
            encode_prompt,
            self._context.engine,
            add_special_tokens=body.add_special_tokens,
            truncation=truncation,
        )
        prompts = [await encode(prompt) for prompt in body.prompt]
        self._prompts = [AskedPrompt() for _ in prompts]
        return GenerationJob(prompts, params, RequestOptions(cache_salt=body.cache_salt))

    def _chunks(self, exchange: Exchange[CompletionRequest]) -> CompletionChunks:
        body, options = exchange.body, exchange.body.stream_options
        return CompletionChunks(
            {"object": "text_completion", **exchange.head("cmpl")},
            exchange.generation.usage,
            None if body.logprobs is None else self._logprob_writer(body),
            num_choices=exchange.job.num_choices,
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
            return_token_ids=bool(body.return_token_ids),
        )

    def _opening(
        self, event: GenerationEvent, chunks: StreamWriter, exchange: Exchange[CompletionRequest]
    ) -> bytes:
        body, index = exchange.body, event.index
        if index in self._opened:
            return b""
        self._opened.add(index)
        prompt = self._prompts[index // exchange.job.params.n]
        prompt.take(event)
        writer = cast(CompletionChunks, chunks)
        writer.tell_prompt(index, prompt.token_ids)
        if not body.echo and body.logprobs is None:
            return b""
        offsets = self._offsets(exchange, index)
        writer.begin(index, offsets)
        if not body.echo:
            return b""
        return writer.echo(
            index, self._prompt_text(exchange, index), self._echoed(body, prompt, offsets)
        )

    async def _collect(
        self, events: AsyncIterator[GenerationEvent], exchange: Exchange[CompletionRequest]
    ) -> Completion:
        generated = exchange.job.params.n
        gathered = [GatheredChoice() for _ in range(exchange.job.num_choices)]
        async for event in events:
            gathered[event.index].add(event)
            self._prompts[event.index // generated].take(event)
        indices = self._best(gathered, exchange)
        choices = [self._choice(index, gathered[index], exchange) for index in indices]
        for place, choice in enumerate(choices):
            choice.index = place
        usage = UsageInfo.of(exchange.generation.usage)
        return Completion(**exchange.head("cmpl"), choices=choices, usage=usage)

    def _best(
        self, gathered: Sequence[GatheredChoice], exchange: Exchange[CompletionRequest]
    ) -> list[int]:
        """The choices to answer with: for each prompt the n likeliest of those generated."""
        indices = list(range(len(gathered)))
        if not exchange.body.is_ranked:
            return indices
        generated, best = exchange.job.params.n, []
        for first in range(0, len(indices), generated):
            own = indices[first : first + generated]
            own.sort(key=lambda index: gathered[index].likelihood, reverse=True)
            best += own[: exchange.body.n or 1]
        return best

    def _choice(
        self, index: int, choice: GatheredChoice, exchange: Exchange[CompletionRequest]
    ) -> CompletionChoice:
        body, prompt = exchange.body, self._prompts[index // exchange.job.params.n]
        echo = self._prompt_text(exchange, index) if body.echo else ""
        written = CompletionChoice(
            index,
            echo + choice.text,
            None if body.logprobs is None else self._logprobs(exchange, index, choice),
            choice.finish_reason,
            choice.stop_reason,
        )
        if body.return_token_ids:
            written.token_ids = choice.token_ids
            written.prompt_token_ids = prompt.token_ids
        if body.prompt_logprobs is not None:
            writer = self._logprob_writer(body)
            written.prompt_logprobs = writer.prompt(prompt.scores, body.prompt_logprobs)
        return written

    def _logprobs(
        self, exchange: Exchange[CompletionRequest], index: int, choice: GatheredChoice
    ) -> CompletionLogprobs:
        body, prompt = exchange.body, self._prompts[index // exchange.job.params.n]
        offsets = self._offsets(exchange, index)
        echoed = self._echoed(body, prompt, offsets) if body.echo else None
        own = self._logprob_writer(body).completion(choice.logprobs, offsets)
        return own if echoed is None else echoed.followed_by(own)

    def _echoed(
        self, body: CompletionRequest, prompt: AskedPrompt, offsets: TextOffsets
    ) -> CompletionLogprobs | None:
        if body.logprobs is None:
            return None
        writer = self._logprob_writer(body)
        return writer.echo(prompt.token_ids, prompt.scores, body.logprobs, offsets)

    def _offsets(self, exchange: Exchange[CompletionRequest], index: int) -> TextOffsets:
        body, number = exchange.body, index // exchange.job.params.n
        sent, token_ids = exchange.job.prompts[number], self._prompts[number].token_ids
        echoed = sent if body.echo and isinstance(sent, str) else ""
        return TextOffsets(
            self._context.engine.tokenizer,
            () if body.echo else token_ids,
            skip_special_tokens=body.skip_special_tokens,
            echoed=echoed,
            num_echoed=len(token_ids) if echoed else 0,
        )

    def _logprob_writer(self, body: CompletionRequest) -> LogprobWriter:
        as_token_ids = bool(body.return_tokens_as_token_ids)
        return LogprobWriter(self._context.engine.tokenizer, as_token_ids=as_token_ids)

    def _prompt_text(self, exchange: Exchange[CompletionRequest], index: int) -> str:
        """The prompt as it was sent, or the text of its ids."""
        prompt = exchange.job.prompts[index // exchange.job.params.n]
        if isinstance(prompt, str):
            return prompt
        tokenizer = self._context.engine.tokenizer
        assert tokenizer is not None, "checked with the prompts"
        return tokenizer.decode(prompt, skip_special_tokens=exchange.body.skip_special_tokens)

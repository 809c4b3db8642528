"""``POST /tokenize`` and ``POST /detokenize``: what the model's tokenizer says; and
``GET /tokenizer_info``: what clients that do without one of their own ask of it."""

from __future__ import annotations

import asyncio
from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.interface import TokenReader
from octavo.engine.model_info import ModelInfo
from octavo.server.body import read_model
from octavo.server.context import ServerContext
from octavo.server.conversation import render_conversation
from octavo.server.errors import bad_request
from octavo.server.json_response import json_response
from octavo.server.openapi import describe, describe_answer
from octavo.server.protocol.tokens import (
    Detokenize,
    DetokenizedText,
    TokenizeChat,
    TokenizerInfo,
    TokenizeText,
    Tokens,
    tokenize_form,
)


def build_router(context: ServerContext) -> APIRouter:
    """The routes, bound to ``context``."""
    router = APIRouter()

    @router.post("/tokenize", **describe(TokenizeText, TokenizeChat, answer=Tokens))
    async def tokenize(request: Request) -> Response:
        """A text, or a conversation, as token ids."""
        info = context.ready_model()
        body = await read_model(request, tokenize_form)
        _check_model(context, body.model)
        tokenizer = _tokenizer(context)
        if isinstance(body, TokenizeText):
            tokens = await context.engine.encode(body.prompt, body.add_special_tokens)
        else:
            tools = [tool.to_tool() for tool in body.tools or ()]
            tokens = await render_conversation(context.engine, body, tools)
        answer = Tokens(len(tokens), info.max_model_len, tokens)
        if body.return_token_strs:
            answer.token_strs = [tokenizer.token_spelling(id_) for id_ in tokens]
        return json_response(answer)

    @router.post("/detokenize", **describe(Detokenize, answer=DetokenizedText))
    async def detokenize(request: Request) -> Response:
        """Token ids as text, special tokens included."""
        info = context.ready_model()
        body = await read_model(request, Detokenize)
        _check_model(context, body.model)
        _check_ids(body.tokens, info)
        decode = partial(_tokenizer(context).decode, skip_special_tokens=False)
        text = await asyncio.to_thread(decode, body.tokens)
        return json_response(DetokenizedText(text))

    @router.get("/tokenizer_info", **describe_answer(TokenizerInfo, 400, 503))
    async def tokenizer_info() -> Response:
        """The tokens that have names, and the chat template."""
        info = context.ready_model()
        template = context.engine.chat_template_source or None
        named = _tokenizer(context).named_tokens
        return json_response(TokenizerInfo(info.max_model_len, template, **named))

    return router


def _check_model(context: ServerContext, asked: str | None) -> None:
    """As for routes that generate: an adapter that is refused is not there for clients."""
    name = context.resolve_model(asked)
    if name not in context.model_names():
        context.engine.adapters.check_offered(name)


def _tokenizer(context: ServerContext) -> TokenReader:
    tokenizer = context.engine.tokenizer
    if tokenizer is None:
        raise bad_request(
            "This server runs without a tokenizer (--skip-tokenizer-init); start it without that "
            "flag to have texts and tokens translated.",
            code="no_tokenizer",
        )
    return tokenizer


def _check_ids(tokens: list[int], info: ModelInfo) -> None:
    largest = max(tokens, default=0)
    if largest >= info.vocab_size:
        raise bad_request(
            f"tokens holds the token id {largest}; the model's ids end at {info.vocab_size - 1}. "
            "Leave it out.",
            "tokens",
        )

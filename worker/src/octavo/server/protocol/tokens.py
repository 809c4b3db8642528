"""The bodies of ``/tokenize`` and ``/detokenize``, and what is told of the tokenizer: vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from pydantic import Field

from octavo.server.protocol.chat import Conversation
from octavo.server.protocol.fields import ModelName, RequestBody, TokenId
from octavo.server.protocol.tools import Tools
from octavo.server.protocol.unsupported import TOKENIZE_CHAT

MAX_TOKENS = 1 << 20


class TokenizeText(RequestBody):
    """A text to be encoded."""

    model: ModelName = None
    prompt: str
    add_special_tokens: bool = Field(
        True, description="Whether the special tokens that begin a prompt are added."
    )
    return_token_strs: bool | None = Field(
        False, description="Tell each token as the vocabulary writes it, too."
    )


class TokenizeChat(Conversation):
    """A conversation to be rendered and encoded."""

    unsupported: ClassVar = TOKENIZE_CHAT

    model: ModelName = None
    tools: Tools = None
    return_token_strs: bool | None = Field(
        False, description="Tell each token as the vocabulary writes it, too."
    )


def tokenize_form(document: dict[str, Any]) -> type[TokenizeText] | type[TokenizeChat]:
    """Which of the two forms a body has."""
    return TokenizeChat if "messages" in document else TokenizeText


class Detokenize(RequestBody):
    """Token ids to be decoded."""

    model: ModelName = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS)]


class Tokens(msgspec.Struct):
    """The answer to ``POST /tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class TokenizerInfo(msgspec.Struct):
    """The answer to ``GET /tokenizer_info``, in the words of a model's tokenizer_config.json."""

    model_max_length: int
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    unk_token: str | None = None
    pad_token: str | None = None
    sep_token: str | None = None
    cls_token: str | None = None


class DetokenizedText(msgspec.Struct):
    """The answer to ``POST /detokenize``."""

    prompt: str

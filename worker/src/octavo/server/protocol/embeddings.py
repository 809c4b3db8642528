"""The body of ``POST /v1/embeddings``, and its answer."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal

import msgspec
from pydantic import BeforeValidator, Field, model_validator

from octavo.pooling_params import Pooling
from octavo.server.protocol.fields import MAX_INT32, EngineBody, KeptTokens
from octavo.server.protocol.prompts import Prompts, as_prompts
from octavo.server.protocol.unsupported import EMBEDDING
from octavo.tokenization.tokenizer import Truncation

MAX_INPUTS = 2048
"""OpenAI's limit."""


class EmbeddingRequest(EngineBody):
    """Texts, or token ids, to be made into vectors."""

    unsupported: ClassVar = EMBEDDING

    input: Annotated[
        list[str] | list[list[int]],
        BeforeValidator(partial(as_prompts, "input", MAX_INPUTS), json_schema_input_type=Prompts),
    ]
    encoding_format: Literal["float", "base64"] | None = Field(
        "float", description="base64: of little-endian float32."
    )
    dimensions: Annotated[int, Field(ge=1, le=MAX_INT32)] | None = Field(
        None, description="Keep so many first components, where the model is made for it."
    )
    pooling: Pooling | None = Field(
        None, description="Of the last token or the mean of all; the model's own if left out."
    )
    normalize: bool = Field(True, description="Scale vectors to length 1.")
    add_special_tokens: bool = Field(
        True, description="Whether text is encoded with the special tokens that begin a prompt."
    )
    truncate_prompt_tokens: KeptTokens | None = Field(
        None, description="Keep so many tokens of each input; -1: as many as fit."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="Where truncate_prompt_tokens leaves tokens out; left if left out."
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> EmbeddingRequest:
        if self.truncation_side is not None and self.truncate_prompt_tokens is None:
            raise ValueError(
                f"truncation_side is {self.truncation_side!r} and truncate_prompt_tokens is not "
                "set; send both or none."
            )
        return self

    def truncation(self, max_model_len: int) -> Truncation | None:
        """How to cut each input, as the request asks."""
        limit = self.truncate_prompt_tokens
        if limit is None:
            return None
        return Truncation(max_model_len if limit == -1 else limit, self.truncation_side or "left")


class Embedding(msgspec.Struct):
    """One vector, as numbers or in base64."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct):
    """The answer to ``POST /v1/embeddings``."""

    id: str
    created: int
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"

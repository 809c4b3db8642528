"""The body of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from octavo.sampling_params import MAX_N, SamplingParams
from octavo.server.protocol.fields import (
    MAX_INT32,
    GenerationBody,
    LogprobCount,
)
from octavo.server.protocol.structured import ConstrainedBody
from octavo.server.protocol.unsupported import COMPLETION

MAX_PROMPTS = 1024
MAX_CHOICES = 1024
"""Prompts times n of one request."""
DEFAULT_MAX_TOKENS = 16
_Prompt = str | list[int] | list[str] | list[list[int]]


def _as_prompts(value: object) -> list[str] | list[list[int]]:
    """Any form of prompt as a list of prompts, all texts or all token ids.

    Done by hand: a union would try every form on every item and report them all.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError(
            f"it is {_shown(value)}; it must be a string, a list of strings, "
            "a list of token ids, or a list of such lists."
        )
    if not value:
        raise ValueError("it is an empty list; send at least one prompt.")
    if type(value[0]) is int:
        return [_as_token_ids(value, "")]
    if len(value) > MAX_PROMPTS:
        raise ValueError(
            f"it has {len(value)} prompts; at most {MAX_PROMPTS} are allowed. "
            "Send several requests."
        )
    if isinstance(value[0], str):
        return [_as_text(item, index) for index, item in enumerate(value)]
    return [_as_token_ids(item, f"[{index}]") for index, item in enumerate(value)]


def _as_text(item: object, index: int) -> str:
    if not isinstance(item, str):
        raise ValueError(
            f"item {index} is {_shown(item)}; all prompts must be strings like the first."
        )
    return item


def _as_token_ids(value: object, where: str) -> list[int]:
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"prompt{where} is {_shown(value)}; it must be a list of token ids, not empty."
        )
    for index, token_id in enumerate(value):
        if type(token_id) is not int or not 0 <= token_id <= MAX_INT32:
            raise ValueError(
                f"prompt{where}[{index}] is {_shown(token_id)}; a token id is an integer "
                f"from 0 to {MAX_INT32}."
            )
    return value


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class CompletionRequest(ConstrainedBody, GenerationBody):
    """Text, or token ids, to be continued."""

    unsupported: ClassVar = COMPLETION

    prompt: Annotated[
        list[str] | list[list[int]],
        BeforeValidator(_as_prompts, json_schema_input_type=_Prompt),
    ]
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT32)] | None = Field(
        DEFAULT_MAX_TOKENS, description="0: only the prompt is read, for echo and its logprobs."
    )
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = Field(
        None, description="Generate so many choices, and answer with the n likeliest by token."
    )
    logprobs: LogprobCount | None = None
    echo: bool | None = Field(
        False, description="Let the text, and its logprobs, begin with the prompt."
    )
    add_special_tokens: bool = Field(
        True, description="Whether text is encoded with the special tokens that begin a prompt."
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> CompletionRequest:
        self._check_best_of()
        choices = len(self.prompt) * self.num_generated
        if choices > MAX_CHOICES:
            raise ValueError(
                f"{len(self.prompt)} prompts with n {self.num_generated} make {choices} choices; "
                f"at most {MAX_CHOICES} are allowed. Send several requests."
            )
        return self

    def _check_best_of(self) -> None:
        if self.best_of is None:
            return
        if self.best_of < (self.n or 1):
            raise ValueError(
                f"best_of is {self.best_of} and n is {self.n}; the best n are of best_of: "
                "raise best_of, or leave it out."
            )
        if self.stream and self.best_of > (self.n or 1):
            raise ValueError(
                f"best_of is {self.best_of} and stream is true; the best are known at the end "
                "only: leave one of them out."
            )

    @property
    def num_generated(self) -> int:
        """Choices generated for each prompt."""
        return self.best_of or self.n or 1

    @property
    def is_ranked(self) -> bool:
        """Whether more choices are generated than answered with."""
        return self.num_generated > (self.n or 1)

    def to_sampling_params(self, defaults: dict[str, float]) -> SamplingParams:
        """See :meth:`GenerationBody.sampling_params`."""
        params = self.sampling_params(
            defaults,
            max_tokens=DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            logprobs=0 if self.is_ranked and self.logprobs is None else self.logprobs,
            prompt_logprobs=self._num_prompt_logprobs(),
            n=self.num_generated,
        )
        return self.constrain(params)

    def _num_prompt_logprobs(self) -> int | None:
        """For what echo and prompt_logprobs tell."""
        echoed = self.logprobs if self.echo else None
        asked = [count for count in (echoed, self.prompt_logprobs) if count is not None]
        return max(asked, default=None)

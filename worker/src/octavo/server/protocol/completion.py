"""The body of ``POST /v1/completions``."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from octavo.sampling_params import MAX_N, SamplingParams
from octavo.server.protocol.fields import (
    MAX_INT32,
    GenerationBody,
    LogprobCount,
)
from octavo.server.protocol.prompts import Prompts, as_prompts
from octavo.server.protocol.structured import ConstrainedBody
from octavo.server.protocol.unsupported import COMPLETION

MAX_PROMPTS = 1024
MAX_CHOICES = 1024
"""Prompts times n of one request."""
DEFAULT_MAX_TOKENS = 16


class CompletionRequest(ConstrainedBody, GenerationBody):
    """Text, or token ids, to be continued."""

    unsupported: ClassVar = COMPLETION

    prompt: Annotated[
        list[str] | list[list[int]],
        BeforeValidator(partial(as_prompts, "prompt", MAX_PROMPTS), json_schema_input_type=Prompts),
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

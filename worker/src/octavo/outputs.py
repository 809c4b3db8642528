"""What the engine gives back: to the server as events, to offline users as request outputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one generated token, from the raw logits (natural logarithm)."""

    token_id: int
    logprob: float
    rank: int
    """1 for the most likely token."""
    top_token_ids: list[int]
    top_logprobs: list[float]


class RequestUpdate(msgspec.Struct, array_like=True):
    """What one step did for one request; crosses the process wall."""

    request_id: str
    new_token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    """A :class:`octavo.request.FinishReason` value, on the last update."""
    stop_reason: int | str | None = None
    """The token id that stopped it, when it was not the model's end-of-text."""
    num_cached_tokens: int = 0
    error: str | None = None
    """With finish_reason ``error``: what went wrong."""


@dataclass(slots=True)
class GenerationEvent:
    """One piece of one choice, as the server streams it."""

    index: int
    """Which of the request's n choices."""
    text: str
    """New text, safe to show: no stop string's beginning is held in it."""
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0


@dataclass(slots=True)
class CompletionOutput:
    """One finished choice (vLLM's name and fields)."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] | None = None


@dataclass(slots=True)
class RequestOutput:
    """What :meth:`octavo.LLM.generate` returns for each prompt (vLLM's name and fields)."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    num_cached_tokens: int = 0
    finished: bool = True

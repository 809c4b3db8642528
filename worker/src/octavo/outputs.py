"""What the engine gives back: to the server as events, to offline users as request outputs."""

from __future__ import annotations

from collections.abc import Iterable
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


class RequestTimings(msgspec.Struct, frozen=True, array_like=True):
    """Where the time of one finished request went, in seconds."""

    queue_s: float
    """From arrival until it was first scheduled."""
    prefill_s: float
    """From then until its first token."""
    decode_s: float
    """From its first token to its last."""

    def rounded(self) -> dict[str, float]:
        """By name, for people to read."""
        return {name: round(value, 4) for name, value in msgspec.structs.asdict(self).items()}

    @classmethod
    def longest(cls, several: Iterable[RequestTimings]) -> RequestTimings:
        """Of each phase, over the choices of one request."""
        return cls(*map(max, zip(*map(msgspec.structs.astuple, several), strict=True)))


class RequestState(msgspec.Struct, frozen=True, array_like=True):
    """Where one open request stands in the engine."""

    request_id: str
    state: str
    """waiting, prefill, decode or preempted."""
    timings: RequestTimings
    """So far."""
    num_output_tokens: int
    num_computed_tokens: int
    num_blocks: int
    num_preemptions: int


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
    timings: RequestTimings | None = None
    """On the last update."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Of the prompt's tokens from the second on, on the first update, if they were asked for."""
    embedding: bytes | None = None
    """The pooled prompt, float32 in the machine's byte order, on the only update of a request
    that asked for it."""


class AdapterStats(msgspec.Struct, kw_only=True):
    """Where LoRA adapters are, by their generations, and what became of them since the start."""

    num_slots: int = 0
    resident: dict[int, int] = {}
    """Generation → slot of the device."""
    in_host_memory: list[int] = []
    running: list[int] = []
    """Generations with requests in the batch."""
    waiting: list[int] = []
    """Generations with requests that wait."""
    num_slot_evictions: int = 0
    num_host_evictions: int = 0
    num_fills: int = 0
    """Copies to slots."""


class EngineStats(msgspec.Struct, kw_only=True):
    """Gauges as of now, and counters since the engine started. Cheap to copy and to send."""

    num_running: int = 0
    num_waiting: int = 0
    num_deferred: int = 0
    """Those of the waiting whose tenant runs as many as it may."""
    num_waiting_tokens: int = 0
    """Prompt tokens of the waiting."""
    num_blocks: int = 0
    """KV blocks there are."""
    num_owned_blocks: int = 0
    """KV blocks that open requests hold."""
    num_cached_blocks: int = 0
    """KV blocks kept for their prefix only; free for whoever needs one."""
    num_steps: int = 0
    step_seconds: float = 0.0
    """Time spent in steps, all together."""
    scheduler_step_counts: list[int] = []
    """How many steps' scheduling fell into each of :data:`SCHEDULER_STEP_BUCKETS`, and one more
    for the rest."""
    scheduler_seconds: float = 0.0
    """Time spent on deciding, all steps together."""
    prompt_tokens: int = 0
    """Prompt tokens of admitted requests, cached ones included."""
    cached_prompt_tokens: int = 0
    """Those of them that were found in the prefix cache."""
    prefix_query_tokens: int = 0
    """Prompt tokens that were looked up in the prefix cache."""
    generation_tokens: int = 0
    num_preemptions: int = 0
    step_token_counts: list[int] = []
    """How many steps fell into each of :data:`STEP_TOKEN_BUCKETS`, and one more for the rest."""
    step_token_sum: int = 0
    """Tokens computed by all steps."""
    last_progress_age_s: float = 0.0
    """How long the engine has said nothing though there is work; 0 when idle."""
    is_late: bool = False
    """Whether that is longer than what it is doing should take."""
    adapters: AdapterStats | None = None
    """None where none are taken."""


STEP_TOKEN_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds (inclusive) for the tokens of one step; vLLM's."""
# fmt: off
SCHEDULER_STEP_BUCKETS = (
    2.5e-5, 5e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 7.5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2, 0.25,
)
# fmt: on
"""Upper bounds (inclusive) for the seconds that deciding takes in one step."""


@dataclass(slots=True)
class GenerationEvent:
    """One piece of one choice, as the server streams it.

    The first event of a request may come as soon as it is accepted, with neither text nor ids.
    """

    index: int
    """Which choice, counted over all prompts: n of the first, then n of the second."""
    text: str
    """New text, safe to show: no stop string's beginning is held in it."""
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    num_prompt_tokens: int = 0
    """Tokens of the prompt; on a choice's first event at the latest."""
    prompt_token_ids: list[int] | None = None
    """The prompt as the engine sees it, on its first event."""
    timings: RequestTimings | None = None
    """On the last event of a choice."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Of the prompt's tokens from the second on, on the first event of a prompt's first choice."""
    embedding: bytes | None = None
    """See :class:`RequestUpdate`."""

    def api_finish(self) -> tuple[str | None, int | str | None]:
        """finish_reason and stop_reason as clients of the API know them: OpenAI has no word for
        a deadline, so it is a length whose stop_reason tells."""
        if self.finish_reason == "deadline":
            return "length", "deadline"
        return self.finish_reason, self.stop_reason

    def absorb(self, later: GenerationEvent) -> None:
        """Merge a later event of the same choice into this one, for a consumer that is slow."""
        self.text += later.text
        self.token_ids = self.token_ids + later.token_ids
        if later.logprobs is not None:
            self.logprobs = (self.logprobs or []) + later.logprobs
        self.finish_reason = later.finish_reason
        self.stop_reason = later.stop_reason
        self.timings = later.timings
        self.num_cached_tokens = later.num_cached_tokens or self.num_cached_tokens
        self.num_prompt_tokens = later.num_prompt_tokens or self.num_prompt_tokens
        self.prompt_token_ids = self.prompt_token_ids or later.prompt_token_ids
        self.prompt_logprobs = self.prompt_logprobs or later.prompt_logprobs
        self.embedding = self.embedding or later.embedding


class Logprob(msgspec.Struct, frozen=True, gc=False):
    """Of one token at one place (vLLM's name and fields)."""

    logprob: float
    """From the raw logits, natural logarithm."""
    rank: int
    """1 for the most likely token."""
    decoded_token: str | None
    """None without a tokenizer."""


@dataclass(slots=True)
class CompletionOutput:
    """One finished choice (vLLM's name and fields, and ``error``)."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    """By token id for each of ``token_ids``: of the token itself first, then of as many of the
    likeliest as were asked for. None if none were."""
    cumulative_logprob: float | None = None
    """Of all ``token_ids`` together; None if none were asked for."""
    error: str | None = None
    """With finish_reason ``error``: what went wrong."""


@dataclass(slots=True)
class RequestOutput:
    """What :meth:`octavo.LLM.generate` returns for each prompt (vLLM's name and fields)."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    num_cached_tokens: int = 0
    finished: bool = True
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    """As :attr:`CompletionOutput.logprobs` for each token of the prompt, None for the first, which
    nothing precedes; None if not asked for."""


@dataclass(slots=True)
class EmbeddingOutput:
    """The vector of one prompt (vLLM's name and fields, and ``error``)."""

    embedding: list[float]
    """Empty where the request failed."""
    error: str | None = None
    """What went wrong, if anything did."""


@dataclass(slots=True)
class EmbeddingRequestOutput:
    """What :meth:`octavo.LLM.embed` returns for each prompt (vLLM's name and fields)."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True

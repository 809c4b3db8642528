"""One generation request inside the engine, and the only table of its states.

Knows a request's tokens, its limits and where it stands; knows nothing of HTTP, text, blocks'
contents or devices. Plain Python, no torch.

::

    WAITING ──► RUNNING ──► FINISHED(stop | length | abort | deadline | error)
       │         │    ▲            ▲
       │         ▼    │            │
       │       PREEMPTED ──────────┤
       └───────────────────────────┘
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Protocol

import msgspec

from octavo.outputs import RequestTimings, TokenLogprobs
from octavo.pooling_params import PoolingParams
from octavo.sampling_params import SamplingParams


class RequestStatus(enum.Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class FinishReason(enum.StrEnum):
    """Why a request ended; exactly one for every request."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    DEADLINE = "deadline"
    ERROR = "error"


class TokenConstraint(Protocol):
    """What a request's output must follow, as the scheduler sees it."""

    has_ended: bool
    """Whether an end-of-text token was taken in where one is allowed."""

    @property
    def is_ready(self) -> bool:
        """Whether the request may run; until then it waits and holds nobody up."""

    @property
    def error(self) -> str | None:
        """Once ready: why it can never run."""

    def accept(self, token_id: int) -> bool:
        """Take in a drawn token; False if it may not stand here."""

    def release(self) -> None:
        """The request has ended."""


_ALLOWED: dict[RequestStatus, tuple[RequestStatus, ...]] = {
    RequestStatus.WAITING: (RequestStatus.RUNNING, RequestStatus.FINISHED),
    RequestStatus.RUNNING: (RequestStatus.PREEMPTED, RequestStatus.FINISHED),
    RequestStatus.PREEMPTED: (RequestStatus.RUNNING, RequestStatus.FINISHED),
    RequestStatus.FINISHED: (),
}


class Tenant(msgspec.Struct, frozen=True, array_like=True):
    """On whose behalf a request runs: an API key's name, and what it may have at once."""

    name: str = ""
    """Empty: everyone, where no keys are asked for."""
    max_running: int | None = None
    max_queued: int | None = None


EVERYONE = Tenant()


@dataclass(frozen=True, slots=True)
class AdapterGeneration:
    """A LoRA adapter as it was loaded once: the same name loaded again is another one."""

    id: int
    digest: str
    """Of its files' contents."""


class RequestGroup:
    """The choices that were asked as one, and are answered as one."""

    __slots__ = ("has_begun",)

    def __init__(self) -> None:
        self.has_begun = False
        """Whether any of them has ever had a row."""


class Request:
    """The engine's record of one request. Mutated by the scheduler alone."""

    __slots__ = (
        "adapter_id",
        "adapter_slot",
        "arrival_s",
        "block_hashes",
        "block_ids",
        "cache_key",
        "deadline_s",
        "embedding",
        "eos_token_ids",
        "finish_reason",
        "first_scheduled_s",
        "first_token_s",
        "grammar",
        "group",
        "id",
        "is_follower",
        "leader",
        "max_total_tokens",
        "num_cached_tokens",
        "num_charged_outputs",
        "num_computed_tokens",
        "num_in_flight",
        "num_preemptions",
        "num_prompt_tokens",
        "order",
        "params",
        "pooling",
        "priority",
        "prompt_logprobs",
        "row",
        "seed",
        "status",
        "stop_reason",
        "stop_token_ids",
        "tenant",
        "token_ids",
    )

    def __init__(
        self,
        id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        seed: int,
        stop_token_ids: frozenset[int] = frozenset(),
        eos_token_ids: frozenset[int] = frozenset(),
        priority: int = 0,
        arrival_s: float = 0.0,
        deadline_s: float | None = None,
        cache_key: bytes | None = None,
        block_hashes: list[bytes] | None = None,
        leader: Request | None = None,
        tenant: Tenant = EVERYONE,
        pooling: PoolingParams | None = None,
        adapter_id: int | None = None,
        grammar: TokenConstraint | None = None,
    ) -> None:
        self.id = id
        self.params = params
        self.seed = seed
        """Key of the request's random draws, 64 bits."""
        self.stop_token_ids = stop_token_ids
        """Ids that end the request: the model's end-of-text ids unless ignored, and its own."""
        self.eos_token_ids = eos_token_ids
        """The model's end-of-text ids: stopping at one of them is not worth a stop_reason."""
        self.priority = priority
        """Lower runs sooner (vLLM's sense)."""
        self.arrival_s = arrival_s
        self.deadline_s = deadline_s
        """On the engine's monotonic clock; None: no deadline."""
        self.cache_key = cache_key
        """Key of the prefix hashes (tenant salt, adapter); None: blocks are not shared."""
        self.block_hashes = list(block_hashes or ())
        """Hash of each full block known so far; the prompt's come with the request. Its own, as it
        grows by what the request generates."""
        self.grammar = grammar
        """What its output must follow; let go of when it ends."""
        self.leader = leader
        """For n > 1: the sibling that computes the prompt; this one waits for its blocks."""
        self.is_follower = leader is not None
        self.group = RequestGroup()
        self.tenant = tenant
        self.pooling = pooling
        """How the prompt becomes a vector; None: it does not."""
        self.adapter_id = adapter_id
        """The generation of the adapter it runs with; None: the base model."""
        self.adapter_slot: int | None = None
        """Where that lies on the device, while the request has a row."""

        self.token_ids = list(prompt_token_ids)
        """Prompt, then what was generated and is known to the host."""
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_in_flight = 0
        """Tokens sampled by planned steps whose result is not yet known."""
        self.num_computed_tokens = 0
        """Tokens whose keys and values are in the cache, or will be after the planned steps."""
        self.num_cached_tokens = 0
        """Prompt tokens found in the prefix cache when first admitted."""
        self.num_charged_outputs = 0.0
        """Output tokens its tenant was charged for when it started."""
        self.block_ids: list[int] = []
        self.row: int | None = None
        self.status = RequestStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.num_preemptions = 0
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        """When the host knew its first output token."""
        self.max_total_tokens = self.num_prompt_tokens
        """Prompt and outputs together at which it ends; the scheduler sets it on arrival."""
        self.prompt_logprobs: list[TokenLogprobs] | None = None
        """Those of the prompt tokens computed so far; None: not wanted, or told already."""
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = []
        self.embedding: bytes | None = None
        """The pooled prompt, once it is computed."""
        self.order: tuple[int, float, float, int] = (priority, math.inf, arrival_s, 0)
        """Who goes first: (priority, deadline, arrival, serial number), the least of them."""

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens the host knows of."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens, those in flight included."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def is_prompt_only(self) -> bool:
        """Whether it ends when its prompt is computed: nothing is drawn."""
        return self.params.max_tokens == 0

    @property
    def reads_whole_prompt(self) -> bool:
        """Whether hidden states are needed at every position, so that no prefix can be skipped."""
        if self.prompt_logprobs is not None:
            return True
        return self.pooling is not None and self.pooling.reads_whole_prompt

    @property
    def is_finished(self) -> bool:
        return self.status is RequestStatus.FINISHED

    def timings(self, now_s: float) -> RequestTimings:
        """Where its time has gone until now."""
        scheduled_s = self.first_scheduled_s or now_s
        first_token_s = self.first_token_s or now_s
        return RequestTimings(
            queue_s=scheduled_s - self.arrival_s,
            prefill_s=first_token_s - scheduled_s,
            decode_s=now_s - first_token_s,
        )

    def transition(self, status: RequestStatus) -> None:
        """Move to another state; the scheduler's release path is the only caller for FINISHED.

        Raises AssertionError on a transition the table does not have: that is our bug.
        """
        assert status in _ALLOWED[self.status], f"{self.id}: {self.status} -> {status}"
        self.status = status

    def __repr__(self) -> str:
        return (
            f"Request({self.id!r}, {self.status.value}, prompt={self.num_prompt_tokens}, "
            f"output={self.num_output_tokens}, computed={self.num_computed_tokens})"
        )

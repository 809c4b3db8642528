"""What a server needs of an engine, and nothing of how an engine does it.

Knows the face of an engine in the server's process: its states, what it says of its model, how
text is asked for. Refuses to know processes, devices and torch. ``engine.async_engine`` is the
real one; tests have a fake.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from octavo.engine.adapter_table import AdapterTable
from octavo.engine.model_info import ModelInfo
from octavo.engine.request_options import NO_OPTIONS, RequestOptions
from octavo.outputs import EngineStats, GenerationEvent, RequestState
from octavo.sampling_params import SamplingParams
from octavo.tokenization.tokenizer import Truncation


class EngineState(enum.StrEnum):
    """Where an engine stands. It only ever moves on, never back."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    """Open requests run on, new ones are refused."""
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far loading is."""

    phase: str = ""
    """The phase under way (as :class:`octavo.engine.messages.PhaseStarted` names them); empty:
    none."""
    detail: str = ""
    fraction: float | None = None
    """Share of the phase that is done, where that is known."""
    finished: Mapping[str, float] = field(default_factory=dict)
    """Phases that ended, in their order, and the seconds each took."""
    ready_s: float | None = None
    """From the server process's start until it could serve; None until then."""


class TokenReader(Protocol):
    """The part of a tokenizer that the server itself needs."""

    @property
    def named_tokens(self) -> Mapping[str, str]:
        """``bos_token``, ``eos_token``, ... → text, as the model's files name them."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens."""
        ...

    @property
    def drops_first_space(self) -> bool:
        """Whether a text's first space is left out in decoding."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of these ids."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for; not always whole characters."""
        ...

    def token_spelling(self, token_id: int) -> str:
        """A token as the vocabulary writes it; empty for an id it does not have."""
        ...


class Engine(Protocol):
    """An engine as the server sees it. All calls come from one event loop."""

    @property
    def state(self) -> EngineState:
        """Where the engine stands now; DEAD as soon as its process is gone."""
        ...

    @property
    def info(self) -> ModelInfo | None:
        """The loaded model; None until the engine is ready."""
        ...

    @property
    def tokenizer(self) -> TokenReader | None:
        """None until loaded, and with ``skip_tokenizer_init``."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether :meth:`render_chat` can work."""
        ...

    @property
    def adapters(self) -> AdapterTable:
        """LoRA adapters by name."""
        ...

    async def start(self) -> None:
        """Begin to load; returns at once."""
        ...

    async def wait_ready(self) -> None:
        """Return when the engine is ready; raise what stopped it from loading."""
        ...

    def progress(self) -> LoadProgress:
        """How far loading is, now."""
        ...

    def generate(
        self,
        prompts: list[str | list[int]],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions = NO_OPTIONS,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Generate ``params.n`` choices for each prompt; with ``options.pooling``, embed it.

        They are admitted or refused as a whole. An event's ``index`` counts choices over all
        prompts. ``request_id`` is used once: what the engine still says of a request that was
        closed must reach no other. Closing the generator, at any moment, aborts what is still
        running; :meth:`abort` ends it from elsewhere. While the consumer is busy, pending events of
        one choice are merged (:meth:`octavo.outputs.GenerationEvent.absorb`), so that at most one
        per choice waits.

        The first step of the generator raises InvalidRequestError, QueueFullError or
        EngineDeadError; a later one EngineDeadError, or RequestFailedError when this request
        alone cannot be continued.
        """
        ...

    def abort(self, request_id: str) -> bool:
        """End a request's open choices with finish_reason ``abort``, also while its prompt is still
        being encoded or its grammar tried; False if none is open."""
        ...

    async def inspect(self) -> Mapping[str, RequestState]:
        """Where open choices stand, by ids that begin with their request's; empty when the engine
        does not answer soon."""
        ...

    async def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        truncation: Truncation | None = None,
    ) -> list[int]:
        """A text as token ids, off the event loop.

        Raises InvalidRequestError without a tokenizer, or for what is no Unicode.
        """
        ...

    @property
    def chat_template_source(self) -> str:
        """The text of the chat template; empty without one."""
        ...

    def template_reads(self, variable: str) -> bool:
        """Whether the chat template looks at a variable of this name at all."""
        ...

    async def render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        add_special_tokens: bool = False,
        most_tokens: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """A conversation as a prompt, by the model's chat template, off the event loop.

        ``add_special_tokens``: also those that encoding puts around a text. ``most_tokens``: raise
        PromptTooLongError for a prompt that is far longer. ``kwargs``: see
        :meth:`octavo.tokenization.chat_template.ChatTemplate.render`.
        Raises InvalidRequestError when the template refuses the conversation.
        """
        ...

    def stats(self) -> EngineStats:
        """Gauges and counters, as of the last step."""
        ...

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests; return when the open ones have ended.

        Those still open after ``timeout_s`` end with finish_reason ``abort``.
        """
        ...

    async def close(self) -> None:
        """End the engine's process and release everything; may be called at any time, twice."""
        ...

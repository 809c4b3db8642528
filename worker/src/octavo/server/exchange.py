"""One request and the answer in the making: what every part of an answer needs at hand."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from octavo.outputs import GenerationEvent, TokenLogprobs
from octavo.server.generation import Generation, GenerationJob
from octavo.server.logprobs import LEAST_LOGPROB, finite
from octavo.server.protocol.fields import EngineBody
from octavo.version import __version__

SYSTEM_FINGERPRINT = f"octavo-{__version__}"
"""Changes when the same request with the same seed may get another answer."""
Body = TypeVar("Body", bound=EngineBody)


@dataclass(slots=True)
class AskedPrompt:
    """What an answer tells of one prompt: its tokens, and their log probabilities if asked."""

    token_ids: list[int] = field(default_factory=list)
    scores: list[TokenLogprobs] = field(default_factory=list)
    """Of the tokens from the second on."""

    def take(self, event: GenerationEvent) -> None:
        """What the event says of the prompt, if it does."""
        if event.prompt_token_ids is not None:
            self.token_ids = event.prompt_token_ids
        if event.prompt_logprobs is not None:
            self.scores = event.prompt_logprobs


@dataclass(slots=True)
class Exchange(Generic[Body]):
    """A request that has been accepted, and its generation."""

    body: Body
    job: GenerationJob
    generation: Generation
    model: str
    """The name the client asked for."""
    answer_id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, prefix: str) -> dict[str, Any]:
        """The fields every answer and every chunk begins with."""
        return {
            "id": f"{prefix}-{self.answer_id}",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }


@dataclass(slots=True)
class GatheredChoice:
    """One choice put together from its events."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    embedding: bytes | None = None

    def add(self, event: GenerationEvent) -> None:
        """The choice's next event."""
        self.texts.append(event.text)
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs or ()
        self.embedding = self.embedding or event.embedding
        if event.finish_reason is not None:
            self.finish_reason, self.stop_reason = event.api_finish()

    @property
    def likelihood(self) -> float:
        """The mean log probability of its tokens: what best_of ranks by."""
        scores = [finite(token.logprob) for token in self.logprobs]
        return sum(scores) / len(scores) if scores else LEAST_LOGPROB

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self.texts)

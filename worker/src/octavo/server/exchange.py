"""One request and the answer in the making: what every part of an answer needs at hand."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from octavo.outputs import GenerationEvent, TokenLogprobs
from octavo.server.generation import Generation, GenerationJob
from octavo.server.protocol.fields import GenerationBody
from octavo.version import __version__

SYSTEM_FINGERPRINT = f"octavo-{__version__}"
"""Changes when the same request with the same seed may get another answer."""
Body = TypeVar("Body", bound=GenerationBody)


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

    def add(self, event: GenerationEvent) -> None:
        """The choice's next event."""
        self.texts.append(event.text)
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs or ()
        if event.finish_reason is not None:
            self.finish_reason, self.stop_reason = event.api_finish()

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self.texts)

"""What a request asks of an engine beside its prompt and its sampling parameters.

Carried as one from whoever answers a client to the intake, in the server's process alone: what
crosses the wall is a :class:`octavo.engine.messages.RequestSpec`. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from octavo.grammar import ReasoningSpan
from octavo.pooling_params import PoolingParams
from octavo.request import EVERYONE, AdapterGeneration, Tenant


class TextEnd(Protocol):
    """Finds the end of one choice's text in what the text says."""

    def is_reached(self, text: str) -> bool:
        """Whether the choice ends with this text, which follows that of earlier calls."""
        ...


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The defaults ask for nothing; see :meth:`octavo.engine.interface.Engine.generate`."""

    priority: int = 0
    """Lower runs first."""
    timeout_s: float | None = None
    """From now; then it ends with finish_reason ``deadline``. None: it has all the time."""
    cache_salt: str | None = None
    """Only prompts with the same salt share cached prefixes."""
    tenant: Tenant = EVERYONE
    """Has its own turns, limits and prefix cache."""
    pooling: PoolingParams | None = None
    """Embed the prompt, so; None: generate."""
    reasoning: ReasoningSpan | None = None
    """Thoughts that come before what ``structured_outputs`` constrain."""
    shown_special: Sequence[str] = ()
    """Special tokens that are part of the text all the same."""
    text_end: Callable[[], TextEnd] | None = None
    """Makes for each choice what ends it; None: only the model, limits and stop strings do."""
    adapter: AdapterGeneration | None = None
    """Held by whoever asks (:meth:`octavo.engine.adapter_table.AdapterTable.acquire`) until the
    end."""


NO_OPTIONS = RequestOptions()

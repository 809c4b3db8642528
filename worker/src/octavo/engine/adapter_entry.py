"""A name that stands for an adapter, and the generations of weights that it has stood for.

Knows what they are and how they are told; what happens to them is :mod:`.adapter_table`'s.
Torch-free.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field

from octavo.engine.adapter_state import RememberedAdapter
from octavo.errors import AdapterChangedError, AdapterError, OctavoError
from octavo.lora.adapter_source import AdapterSource


class AdapterState(enum.StrEnum):
    """Where a name stands."""

    KNOWN = "known"
    """It is loaded when first asked for."""
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    """The last attempt to load it failed, or to read it again after it had left memory; a request
    makes another."""


@dataclass(slots=True)
class Generation:
    """Weights that were loaded once."""

    id: int
    digest: str
    rank: int
    size_bytes: int
    base_model: str | None
    revision: str | None = None
    """The hub's commit."""
    error: str | None = None
    """Why its files, needed again, could not be read when last tried; None: nothing is amiss."""
    num_open: int = 0
    """Requests that use it."""
    is_retired: bool = False
    is_idle: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class AdapterEntry:
    """A name that requests may use."""

    name: str
    source: AdapterSource
    is_lazy: bool = False
    is_remembered: bool = False
    """Whether it is there again after a restart; adapters of the command line are anyway."""
    is_promised: bool = False
    """Whether somebody was told that it is there, or will be; others are gone when they fail."""
    current: Generation | None = None
    load: asyncio.Task[Generation] | None = None
    """Under way, if any."""
    error: str | None = None
    """Why the last attempt to load failed."""
    is_refused: bool = False
    """Whether it failed for what the files hold, so that other attempts would, too."""
    retry_at_s: float = 0.0
    """When a request may make another attempt, by the event loop's clock."""
    is_unloaded: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> AdapterState:
        if self.current is not None:
            return AdapterState.READY if self.current.error is None else AdapterState.FAILED
        if self.load is not None:
            return AdapterState.LOADING
        return AdapterState.KNOWN if self.error is None else AdapterState.FAILED

    @property
    def is_lasting(self) -> bool:
        """Whether a restart is to bring it back: not what may yet be gone because it fails."""
        return self.is_remembered and self.is_promised

    @property
    def is_offered(self) -> bool:
        """Whether requests may use it, as far as is known."""
        return self.current is not None or not self.is_refused

    def failed(self, error: OctavoError, source: AdapterSource, retry_at_s: float) -> None:
        """An attempt to load it from ``source`` has ended so; a request may make another then. What
        somebody else's files hold says nothing of those that a request would load."""
        self.error = str(error)
        if source != self.source:
            return
        # Of files that have changed another server may have those that are asked for.
        is_final = isinstance(error, AdapterError) and not isinstance(error, AdapterChangedError)
        self.is_refused = is_final
        # A hub must not be called for each request, nor a file read that will not do.
        if is_final or not source.is_near:
            self.retry_at_s = retry_at_s

    def succeeded(self) -> None:
        """Nothing is amiss with it any more."""
        self.error, self.is_refused = None, False

    @property
    def message(self) -> str | None:
        """What went wrong with it last, if that has not been put right since."""
        reread = None if self.current is None else self.current.error
        return reread or self.error

    def stands_for(self, source: AdapterSource) -> bool:
        """Whether it is that already, known without a look at the files."""
        current = self.current
        if current is None or current.error is not None:
            return False
        return source.digest == current.digest and source.path == self.source.path

    def can_wait_with(self, source: AdapterSource) -> bool:
        """Whether nobody uses anything else under this name."""
        return source == self.source if self.current is not None else self.load is None

    def remembered(self) -> RememberedAdapter:
        """For the state file: what it stands for now, not what may be at its source later."""
        source = self.source
        if self.current is not None:
            source = source.pinned(self.current.revision, self.current.digest)
        return RememberedAdapter(
            self.name, source.path, source.revision, source.digest, self.is_lazy
        )

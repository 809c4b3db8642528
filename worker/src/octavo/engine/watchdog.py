"""Tells a slow engine from a stuck one, by how long it has said nothing while it has work.

Knows clocks and limits; knows nothing of processes. It runs in the server's process, since a step
that hangs may hold everything of the engine's, its interpreter's lock included.
"""

from __future__ import annotations

from octavo.engine.step_pace import RED_BEFORE_S, SHORTEST_LIMIT_S

TICK_S = 0.5
"""How often to look."""


class Watchdog:
    """Counts the silence of an engine that has work; ``clock_s`` everywhere is monotonic.

    Silence is counted in ticks, each of at most two seconds: where the watcher itself was
    stopped, nothing is known of the engine.
    """

    def __init__(self, clock_s: float) -> None:
        self.limit_s = SHORTEST_LIMIT_S
        """How long the engine may say nothing, by its own word."""
        self.silent_s = 0.0
        self._ticked_s = clock_s

    def hear(self, limit_s: float = 0.0) -> None:
        """The engine has said something; ``limit_s``: it may be so long until the next word."""
        self.silent_s = 0.0
        self.limit_s = max(limit_s, SHORTEST_LIMIT_S)

    def tick(self, clock_s: float, has_work: bool) -> None:
        """Some time has passed."""
        elapsed_s, self._ticked_s = clock_s - self._ticked_s, clock_s
        self.silent_s = self.silent_s + min(elapsed_s, 4 * TICK_S) if has_work else 0.0

    @property
    def is_late(self) -> bool:
        """Whether the engine is worth no new requests."""
        return self.silent_s > self.limit_s - RED_BEFORE_S

    @property
    def is_stuck(self) -> bool:
        """Whether it is to be given up."""
        return self.silent_s > self.limit_s

"""What steps have cost and computed since the engine started.

Knows counts and seconds; knows nothing of what a step is made of.
"""

from __future__ import annotations

from bisect import bisect_left

from octavo.outputs import SCHEDULER_STEP_BUCKETS, STEP_TOKEN_BUCKETS, EngineStats


class StepAccounts:
    """Kept by the engine's core, a few numbers a step."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._step_s = 0.0
        self._token_counts = [0] * (len(STEP_TOKEN_BUCKETS) + 1)
        self._num_tokens = 0
        self._scheduler_counts = [0] * (len(SCHEDULER_STEP_BUCKETS) + 1)
        self._scheduler_s = 0.0
        self._scheduled_s = 0.0
        """What deciding has cost in the step that is being made."""
        self._num_generated = 0

    def planned(self, seconds: float) -> None:
        """A step, or that there is none, was decided in so long."""
        self._scheduled_s = seconds

    def committed(self, num_tokens: int, num_generated: int, seconds: float) -> None:
        """A step that computed ``num_tokens`` was taken in in so long."""
        self._num_steps += 1
        self._num_tokens += num_tokens
        self._num_generated += num_generated
        self._token_counts[bisect_left(STEP_TOKEN_BUCKETS, num_tokens)] += 1
        decided_s = self._scheduled_s + seconds
        self._scheduler_s += decided_s
        self._scheduler_counts[bisect_left(SCHEDULER_STEP_BUCKETS, decided_s)] += 1

    def advanced(self, seconds: float) -> None:
        """From the plan to the commit of the oldest step under way it was so long."""
        self._step_s += seconds + self._scheduled_s

    def add_to(self, stats: EngineStats) -> None:
        """Tell what is known here."""
        stats.num_steps = self._num_steps
        stats.step_seconds = self._step_s
        stats.generation_tokens = self._num_generated
        stats.step_token_counts = list(self._token_counts)
        stats.step_token_sum = self._num_tokens
        stats.scheduler_step_counts = list(self._scheduler_counts)
        stats.scheduler_seconds = self._scheduler_s

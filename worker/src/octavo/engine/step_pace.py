"""How long a step may take before it is taken for stuck: what steps of its size took, and more.

Knows sizes and durations; knows nothing of what a step does or of who watches. A step of n times
the tokens takes at most n times as long, since what a step costs whatever its size is paid once:
that bounds a prefill larger than any before.
"""

from __future__ import annotations

SHORTEST_LIMIT_S = 9.0
"""For nearly all steps. Health turns red :data:`RED_BEFORE_S` earlier."""
RED_BEFORE_S = 3.0
UNMEASURED_LIMIT_S = 120.0
"""For the first step of an engine's life: libraries load lazily, nobody knows how fast it is."""
COMPILATION_LIMIT_S = 300.0
"""For a kernel that is compiled at its first use."""
_MARGIN = 3.0
_ALLOWANCE_S = 5.0
_FORGETTING = 0.98


class StepPace:
    """The slowest step of each size, sizes by powers of two; what is long past counts less."""

    def __init__(self) -> None:
        self._slowest_s = [0.0] * 33

    def record(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        size = min(num_tokens.bit_length(), 32)
        faded_s = self._slowest_s[size] * _FORGETTING
        self._slowest_s[size] = seconds if seconds > faded_s else faded_s

    def limit_s(self, num_tokens: int) -> float:
        """How long a step of so many tokens may take."""
        expected_s = self._expected_s(min(num_tokens.bit_length(), 32))
        if expected_s is None:
            return UNMEASURED_LIMIT_S
        return max(SHORTEST_LIMIT_S, _ALLOWANCE_S + _MARGIN * expected_s)

    def _expected_s(self, size: int) -> float | None:
        """From the nearest size that was measured, smaller ones first: they bound it."""
        for smaller in range(size, -1, -1):
            if self._slowest_s[smaller]:
                return self._slowest_s[smaller] * 2.0 ** (size - smaller)
        return next((seconds for seconds in self._slowest_s[size + 1 :] if seconds), None)

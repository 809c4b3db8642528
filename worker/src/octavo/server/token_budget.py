"""Tokens a minute that one API key may use: a bucket that fills steadily and may be overdrawn.

What an answer will cost is not known before it is made, so a request is let in while anything is
left, and what it used is taken as it is used. Knows amounts and clocks.
"""

from __future__ import annotations

from octavo.server.requests import RequestRecord


class TokenBudget:
    """Of one key's name; it outlives changes of the key's file."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._filled_s = now_s
        self._charged: dict[RequestRecord, int] = {}
        """Requests and how much of their use has been taken so far."""

    def enter(self, record: RequestRecord, now_s: float) -> float:
        """Let a request in; else how many seconds to wait until the next one may be."""
        self._settle(now_s)
        if self._level <= 0:
            return (1 - self._level) * 60 / self.per_minute
        self._charged[record] = 0
        return 0.0

    def _settle(self, now_s: float) -> None:
        filled = (now_s - self._filled_s) * self.per_minute / 60
        self._level = min(self._level + filled, float(self.per_minute))
        self._filled_s = now_s
        for record, charged in list(self._charged.items()):
            usage = record.usage
            used = 0 if usage is None else usage.prompt_tokens + usage.completion_tokens
            self._level -= used - charged
            self._charged[record] = used
            if record.outcome is not None:
                del self._charged[record]

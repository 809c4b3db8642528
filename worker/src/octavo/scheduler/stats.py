"""What the scheduler tells of itself: gauges of this moment and counters since its start."""

from __future__ import annotations

import msgspec


class SchedulerStats(msgspec.Struct, frozen=True):
    """Part of what :class:`octavo.outputs.EngineStats` tells."""

    num_running: int
    num_waiting: int
    """Requests without a row, the preempted ones included."""
    num_deferred: int
    """Those of the waiting whose tenant runs as many as it may."""
    num_waiting_tokens: int
    """Prompt tokens of the waiting, those of preempted requests left out."""
    num_blocks: int
    """All blocks: owned + cached + free."""
    num_cached_blocks: int
    """Held by nobody, contents still findable."""
    num_free_blocks: int
    """Held by nobody, contents of no use."""
    num_preemptions: int
    """Since start."""
    num_prompt_tokens: int
    """Prompt tokens of admitted requests, found in the cache or not, since start."""
    prefix_queries: int
    """Tokens looked up in the prefix cache, since start."""
    prefix_hits: int
    """Tokens found there, since start."""

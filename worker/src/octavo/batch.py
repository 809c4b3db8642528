"""What the scheduler asks of the runner for one step, and what comes back.

Plain data, no torch: the deciding wing makes a :class:`BatchPlan`, the computing wing turns it
into tensors. A plan holds only differences: rows that changed hands, blocks that were added,
and for every scheduled row where it starts and how many tokens it computes. Lists run in
parallel (no object per row), because a plan is made for every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from octavo.outputs import TokenLogprobs
from octavo.pooling_params import PoolingParams
from octavo.request import Request
from octavo.sampling_params import SamplingParams


class RowAdmission(msgspec.Struct, frozen=True):
    """A request takes over a row: everything the runner must know of it.

    Hundreds may be made in one step, and a frozen dataclass takes 2.3 µs to make where this takes
    0.2.
    """

    row: int
    token_ids: list[int]
    """Prompt and outputs so far; owned by the receiver (the scheduler passes a copy)."""
    num_prompt_tokens: int
    num_cached_tokens: int
    """Tokens, from the first, whose keys and values were found in the cache: never computed."""
    params: SamplingParams
    seed: int
    stop_token_ids: frozenset[int]
    block_ids: list[int]
    """Blocks it holds already, prefix hits first; a copy."""
    adapter_slot: int | None = None
    """Where its adapter lies on the device; None: it uses none."""


@dataclass(frozen=True, slots=True)
class MaskMemory:
    """Host memory for token masks: ``[num_masks, num_words], uint32``, contiguous.

    Bit ``i % 32`` of word ``i // 32`` is set where token ``i`` may be drawn.
    """

    pointer: int
    num_masks: int
    num_words: int


@dataclass(frozen=True, slots=True)
class PromptReading:
    """What a row's tokens of one step are read for, beside their keys and values."""

    row: int
    num_scored: int
    """Its first so many tokens are each followed by a prompt token that is to be scored."""
    num_top: int
    """Alternatives listed with each score."""
    pooling: PoolingParams | None
    ends_prompt: bool
    """Whether its last token of this step is the prompt's last."""


@dataclass(slots=True)
class BatchPlan:
    """One step. Carried out in this order: releases, admissions, new blocks, rows."""

    released_rows: list[int] = field(default_factory=list)
    admissions: list[RowAdmission] = field(default_factory=list)
    new_blocks: list[tuple[int, int, list[int]]] = field(default_factory=list)
    """``(row, index of the first in the row's block table, block ids)``."""
    rows: list[int] = field(default_factory=list)
    """Scheduled rows; the ``num_decodes`` that compute a single token first."""
    starts: list[int] = field(default_factory=list)
    """Position of each row's first token of this step."""
    num_tokens: list[int] = field(default_factory=list)
    """Tokens each row computes."""
    samples: list[bool] = field(default_factory=list)
    """Whether the row's last token of this step is followed by a draw."""
    num_decodes: int = 0
    constrained: list[int] = field(default_factory=list)
    """Positions in ``rows``, rising, of those that draw under a mask: the step's draw waits for
    :meth:`StepHandle.draw`."""
    shared_lens: list[int] = field(default_factory=list)
    """Of the first rows, decodes all, the tokens whose blocks several of them hold in common:
    one number for all that do, 0 for the others. Empty: not worth a pass of their own."""
    readings: list[PromptReading] = field(default_factory=list)
    """Of the few rows whose prompt is asked about."""
    requests: list[Request] = field(default_factory=list)
    """Who stood in each row when planned; for :meth:`Scheduler.commit`, not for the runner."""

    @property
    def total_tokens(self) -> int:
        return sum(self.num_tokens)


@dataclass(slots=True)
class PromptRead:
    """What came of a :class:`PromptReading`."""

    logprobs: list[TokenLogprobs]
    """Of the tokens that follow the scored ones."""
    embedding: bytes | None = None
    """float32, where pooling was asked for and the prompt has ended."""


@dataclass(slots=True)
class StepResult:
    """What a step drew, in the order of the plan's sampling rows."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] | None = None
    """None when no row asked for any."""
    prompts: list[PromptRead] = field(default_factory=list)
    """One for each of the plan's readings."""


class StepHandle(Protocol):
    """A step under way."""

    def draw(self, mask_rows: dict[int, int]) -> None:
        """Let a step with constrained rows draw, now that the masks lie in the mask memory.

        ``mask_rows``: position in the plan's ``rows`` → mask. Constrained rows that are not in it
        are nobody's any more. Called once, before :meth:`result`, and only for such a step.
        """

    def result(self) -> StepResult:
        """Wait for the device and return what was drawn."""


class Runner(Protocol):
    """The computing wing, as the engine's core sees it."""

    def execute(self, plan: BatchPlan) -> StepHandle:
        """Start a step; returns as soon as the device has its work."""

    def prepare_next(self) -> bool:
        """Use an idle moment: do one bounded piece of work that later steps profit from.

        False when nothing is left to prepare.
        """

    def mask_memory(self) -> MaskMemory:
        """Where the masks of constrained rows are to be written before a step draws."""

    def close(self) -> None:
        """Release device memory."""

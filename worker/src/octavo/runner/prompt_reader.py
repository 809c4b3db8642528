"""What is read off a prompt's hidden states beside the next draw: scores and embeddings.

Knows where a row's tokens lie in a step, and sums that outlive a step because prompts come in
chunks; decides nothing. It runs only in steps where some prompt is asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import normalize

from octavo.batch import BatchPlan, PromptRead, PromptReading
from octavo.models.interface import CausalLM
from octavo.outputs import TokenLogprobs
from octavo.pooling_params import PoolingParams
from octavo.runner.rows import Rows
from octavo.sampling.logprobs import LogprobTensors, score_tokens

_MAX_LOGITS_BYTES = 64 << 20
"""Of one slice of a prompt: a long one has more logits than there is memory for."""
_ROWS_AT_ONCE = 256
"""Whose running sums there is memory for."""


@dataclass(frozen=True, slots=True)
class PendingRead:
    """One reading on its way from the device."""

    slices: Sequence[tuple[LogprobTensors, int]]
    """Scores and how many each holds."""
    embedding: Tensor | None

    def result(self) -> PromptRead:
        """Waits for the device."""
        logprobs: list[TokenLogprobs] = []
        for tensors, count in self.slices:
            logprobs += [one for one in tensors.per_row(count) if one is not None]
        embedding = None if self.embedding is None else bytes(self.embedding.cpu().numpy())
        return PromptRead(logprobs, embedding)


class PromptReader:
    """Carries out the readings of plans."""

    def __init__(self, model: CausalLM, rows: Rows) -> None:
        self._model = model
        self._rows = rows
        self._slice_len = max(1, _MAX_LOGITS_BYTES // (4 * model.vocab_size))
        self._sums: dict[int, Tensor] = {}
        """Of the hidden states of prompts whose mean is under way, ``[hidden_size], float64``."""

    def read(self, plan: BatchPlan, hidden: Tensor) -> list[PendingRead]:
        """One for each of the plan's readings; ``hidden: [T, hidden_size]``."""
        ends = list(accumulate(plan.num_tokens))
        place = {row: i for i, row in enumerate(plan.rows)}
        reads = []
        for reading in plan.readings:
            i = place[reading.row]
            own = hidden[ends[i] - plan.num_tokens[i] : ends[i]]
            slices = self._score(reading, plan.starts[i], own)
            reads.append(PendingRead(slices, self._pool(reading, plan.starts[i], own)))
        return reads

    def _score(
        self, reading: PromptReading, start: int, hidden: Tensor
    ) -> list[tuple[LogprobTensors, int]]:
        """Scores of the tokens that follow the first ``num_scored``."""
        slices = []
        for first in range(0, reading.num_scored, self._slice_len):
            count = min(self._slice_len, reading.num_scored - first)
            logits = self._model.logits(hidden[first : first + count]).float()
            at = start + first + 1
            following = self._rows.token_ids[reading.row, at : at + count].long()
            slices.append((score_tokens(logits, following, reading.num_top), count))
        return slices

    def _pool(self, reading: PromptReading, start: int, hidden: Tensor) -> Tensor | None:
        params = reading.pooling
        if params is None:
            return None
        if params.pooling == "last":
            return _finish(hidden[-1].float(), params) if reading.ends_prompt else None
        total = _add_rows(self._sums.pop(reading.row) if start else None, hidden)
        if not reading.ends_prompt:
            self._sums[reading.row] = total
            return None
        return _finish((total / (start + len(hidden))).float(), params)


def _add_rows(total: Tensor | None, rows: Tensor) -> Tensor:
    """A sum of ``[hidden_size], float64``, None at first, and ``rows: [T, hidden_size]``.

    One row after the other: bits do not depend on how a prompt was cut into chunks, as those of a
    plain sum do.
    """
    for part in torch.split(rows, _ROWS_AT_ONCE):
        part = part.double()
        if total is not None:
            part = torch.cat([total[None], part])
        total = part.cumsum(dim=0)[-1]
    assert total is not None, "a step computes a token at least"
    return total


def _finish(vector: Tensor, params: PoolingParams) -> Tensor:
    vector = vector[: params.dimensions]
    return normalize(vector, dim=0) if params.normalize else vector

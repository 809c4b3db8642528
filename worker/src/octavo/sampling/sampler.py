"""Draws the next token of every scheduled row.

Knows each row's request parameters, kept in persistent tensors on the device; knows nothing of
where logits come from or where tokens go. Order of work, as vLLM's: log probabilities from the
raw logits, then biases, barred and allowed tokens, penalties, temperature, top-k, top-p, min-p.

Work on the host is proportional to the rows of a batch, and is done only when the rows that are
sampled change: in steady decoding a step costs the host a tuple comparison.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.interface import Kernels, SamplingBatch
from octavo.kernels.upload import upload
from octavo.outputs import TokenLogprobs
from octavo.sampling.logit_edits import EditBatch, RowEdits
from octavo.sampling.logprobs import LogprobBatch, LogprobTensors
from octavo.sampling.penalties import PenaltyBatch, PenaltyTables
from octavo.sampling.row_parameters import RowParameters
from octavo.sampling_params import SamplingParams


class DrawKind(enum.Enum):
    """What a batch's draws need; a captured step serves one kind."""

    GREEDY = "greedy"
    RANDOM = "random"
    FILTERED = "filtered"
    """Random, and some row uses top-k, top-p or min-p."""
    LATER = "later"
    """Not in the captured step, which ends with the hidden states: rows are constrained, or want
    more than a draw."""


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What one step drew."""

    token_ids: Tensor
    """``[R], int64``."""
    logprobs: LogprobTensors | None
    """For the rows that asked; None if none did."""

    def on_the_way_to_host(self) -> SampledTokens:
        """Copies in pinned memory, not to be read before the stream has passed."""
        host, logprobs = torch.device("cpu"), self.logprobs
        return SampledTokens(
            self.token_ids.to(host, non_blocking=True),
            None if logprobs is None else logprobs.to(host, non_blocking=True),
        )

    def to_host_logprobs(self) -> list[TokenLogprobs | None] | None:
        """For each row what it asked for; None if none asked. Waits, where they are there, for the
        device."""
        return None if self.logprobs is None else self.logprobs.per_row(len(self.token_ids))


@dataclass(frozen=True, slots=True)
class _Row:
    """One admitted request, as the host knows it."""

    params: SamplingParams
    edits: RowEdits | None
    penalty_slot: int | None

    @property
    def is_plain(self) -> bool:
        """Whether it wants a draw and nothing else."""
        return self.edits is None and self.penalty_slot is None and self.params.logprobs is None


@dataclass(frozen=True, slots=True)
class _Composition:
    """Everything that depends on which rows are sampled and not on the step."""

    rows: tuple[int, ...]
    sampling: SamplingBatch
    """Its positions are zeros; only a wholly greedy draw may use them."""
    edits: EditBatch | None
    penalties: PenaltyBatch | None
    logprobs: LogprobBatch | None
    is_plain: bool
    """Whether every row wants a draw and nothing else."""


class Sampler:
    """Sampling state of ``num_rows`` rows.

    A row's draws depend on its own logits, parameters, seed and positions alone, so the same
    seed gives the same tokens whatever else is in the batch, also after preemption.
    """

    def __init__(
        self, kernels: Kernels, vocab_size: int, num_rows: int, device: torch.device
    ) -> None:
        self._kernels = kernels
        self._vocab_size = vocab_size
        self._device = device
        self._rows: dict[int, _Row] = {}
        self._penalties = PenaltyTables(vocab_size, device)
        self._composition: _Composition | None = None
        self._kind: tuple[tuple[int, ...], DrawKind] = ((), DrawKind.GREEDY)
        """Rows that were asked about last, and their kind of draw."""
        self._parameters = RowParameters(num_rows, device)

    @property
    def num_penalty_slots(self) -> int:
        """How many penalised requests there is table memory for."""
        return self._penalties.capacity

    def admit(
        self,
        row: int,
        params: SamplingParams,
        seed: int,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int],
        stop_token_ids: Set[int],
    ) -> None:
        """A request takes over a row, for the first time or after preemption.

        ``seed``: any 64 bits, signed or not. ``stop_token_ids``: every id that would end the
        request; barred while it has drawn fewer than ``min_tokens``.
        """
        self.release(row)
        is_barred = len(output_token_ids) < params.min_tokens
        self._rows[row] = _Row(
            params,
            RowEdits.of(
                params,
                sorted(stop_token_ids) if is_barred else (),
                len(prompt_token_ids),
                self._vocab_size,
                self._device,
            ),
            self._penalties.hold(prompt_token_ids, output_token_ids)
            if params.has_penalty
            else None,
        )
        self._parameters.admit(row, params, seed, self._vocab_size)

    def write_admitted(self) -> None:
        """Send the parameters of rows admitted since the last call to the device."""
        self._parameters.write_admitted()

    def release(self, row: int) -> None:
        """The row's request is gone. A row that holds none is left as it is."""
        held = self._rows.pop(row, None)
        if held is None:
            return
        if held.penalty_slot is not None:
            self._penalties.free(held.penalty_slot)
        self._kind = ((), DrawKind.GREEDY)
        if self._composition is not None and row in self._composition.rows:
            self._composition = None

    def sample(
        self,
        logits: Tensor,
        rows: Sequence[int],
        positions: Tensor | Sequence[int],
        history: Tensor | None = None,
        masks: tuple[Tensor, Tensor] | None = None,
    ) -> SampledTokens:
        """Draw one token for each of R different rows.

        ``logits: [R, vocab]`` of any float dtype, overwritten. ``positions: [R]``: the index each
        drawn token will have in its sequence (tokens before it), the row's random counter.
        ``history: [num_rows, max_len], int32``: tokens of every row up to its position; needed
        where a row has bad words. ``masks``: what constrained rows may draw: masks, and which of
        them each row obeys (see :class:`octavo.kernels.interface.SamplingBatch`).
        """
        composition = self._compose(tuple(rows))
        if composition.is_plain and composition.sampling.all_greedy and masks is None:
            return SampledTokens(self._kernels.sample(logits, composition.sampling), None)
        return self._sample(logits, composition, self._as_positions(positions), history, masks)

    def kind_of(self, rows: Sequence[int]) -> DrawKind:
        """The kind of these rows' draws, where none is constrained."""
        asked = tuple(rows)
        if self._kind[0] != asked:
            self._kind = (asked, self._find_kind([self._rows[row] for row in asked]))
        return self._kind[1]

    @staticmethod
    def _find_kind(held: Sequence[_Row]) -> DrawKind:
        if not all(row.is_plain for row in held):
            return DrawKind.LATER
        if all(row.params.is_greedy for row in held):
            return DrawKind.GREEDY
        has_filter = any(row.params.has_filter for row in held)
        return DrawKind.FILTERED if has_filter else DrawKind.RANDOM

    def gather(self, rows: Tensor, positions: Tensor, kind: DrawKind) -> SamplingBatch:
        """The parameters of rows known only to the device: for a captured step.

        ``rows: [R], int64``; ``positions: [R], int32``. Reads what :meth:`write_admitted` wrote.
        """
        return self._parameters.gather(
            rows, positions, kind is DrawKind.GREEDY, kind is DrawKind.FILTERED
        )

    def run_covering(self, logits: Tensor) -> None:
        """Draw for nobody from ``logits: [1, vocab]``, as a model gives them, by each program that
        any draw runs: rows that want more than a draw have theirs from float32."""
        row = torch.zeros(1, dtype=torch.int64, device=self._device)
        for scores in (logits, logits.float()):
            for kind in (DrawKind.GREEDY, DrawKind.RANDOM, DrawKind.FILTERED):
                self._kernels.sample(scores, self.gather(row, row.to(torch.int32), kind))

    def _sample(
        self,
        logits: Tensor,
        composition: _Composition,
        positions: Tensor,
        history: Tensor | None,
        masks: tuple[Tensor, Tensor] | None,
    ) -> SampledTokens:
        if not composition.is_plain:
            logits = logits.float()
        raw = None
        if composition.logprobs is not None:
            raw = logits[composition.logprobs.indices]
        if composition.edits is not None:
            composition.edits.apply(logits, positions, history)
        if composition.penalties is not None:
            self._penalties.apply(logits, composition.penalties)
        token_ids = self._kernels.sample(logits, _at(composition.sampling, positions, masks))
        if composition.penalties is not None:
            self._penalties.record(token_ids, composition.penalties)
        if composition.logprobs is None or raw is None:
            return SampledTokens(token_ids, None)
        return SampledTokens(token_ids, composition.logprobs.compute(raw, token_ids))

    def _as_positions(self, positions: Tensor | Sequence[int]) -> Tensor:
        if not isinstance(positions, Tensor):
            return upload(positions, torch.int32, self._device)
        return positions.to(self._device, torch.int32)

    def _compose(self, rows: tuple[int, ...]) -> _Composition:
        composition = self._composition
        if composition is None or composition.rows != rows:
            composition = self._composition = self._new_composition(rows)
        return composition

    def _new_composition(self, rows: tuple[int, ...]) -> _Composition:
        held = [self._rows[row] for row in rows]
        sampling = self._sampling_batch(rows, held)
        edits = {index: row.edits for index, row in enumerate(held) if row.edits is not None}
        edit_batch = EditBatch.of(edits, rows, self._device) if edits else None
        penalties, logprobs = self._penalty_batch(held), self._logprob_batch(held)
        is_plain = all(row.is_plain for row in held)
        return _Composition(rows, sampling, edit_batch, penalties, logprobs, is_plain)

    def _sampling_batch(self, rows: Sequence[int], held: Sequence[_Row]) -> SamplingBatch:
        self.write_admitted()
        positions = torch.zeros(len(rows), dtype=torch.int32, device=self._device)
        all_greedy = all(row.params.is_greedy for row in held)
        any_filter = any(row.params.has_filter for row in held)
        return self._parameters.gather(self._to_device(rows), positions, all_greedy, any_filter)

    def _penalty_batch(self, held: Sequence[_Row]) -> PenaltyBatch | None:
        slots = [
            (index, row.penalty_slot)
            for index, row in enumerate(held)
            if row.penalty_slot is not None
        ]
        if not slots:
            return None
        params = [held[index].params for index, _ in slots]
        weights = upload(
            [(p.repetition_penalty, p.presence_penalty, p.frequency_penalty) for p in params],
            torch.float32,
            self._device,
        )
        return PenaltyBatch(
            self._to_device([index for index, _ in slots]),
            self._to_device([slot for _, slot in slots]),
            tuple(slot for _, slot in slots),
            *weights.chunk(3, dim=1),
        )

    def _logprob_batch(self, held: Sequence[_Row]) -> LogprobBatch | None:
        wanted = {
            index: row.params.logprobs
            for index, row in enumerate(held)
            if row.params.logprobs is not None
        }
        if not wanted:
            return None
        return LogprobBatch(self._to_device(list(wanted)), tuple(wanted), tuple(wanted.values()))

    def _to_device(self, values: Sequence[int]) -> Tensor:
        return upload(values, torch.int64, self._device)


def _at(
    batch: SamplingBatch, positions: Tensor, masks: tuple[Tensor, Tensor] | None
) -> SamplingBatch:
    """The same rows at other positions, under masks."""
    return SamplingBatch(
        batch.temperature,
        batch.top_k,
        batch.top_p,
        batch.min_p,
        batch.seeds,
        positions,
        batch.all_greedy,
        batch.any_filter,
        *(masks or (None, None)),
    )

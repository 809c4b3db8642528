"""Changes to logits that a request asks for by token id: biases, stop tokens barred until enough
tokens are drawn, words that are not generated, and the only tokens allowed.

All but the last are lists of (row, token id) pairs, so their cost grows with the pairs and not
with the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.upload import upload
from octavo.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class RowEdits:
    """What one request changes. Ids are within the vocabulary; those of a kind are unique."""

    biases: Mapping[int, float]
    barred_ids: Sequence[int]
    """Not to be drawn before ``first_stop_position``."""
    first_stop_position: int
    bad_sequences: Sequence[Sequence[int]]
    """Not to be completed by a draw."""
    allowed: Tensor | None
    """``[vocab], bool``, on the device: what may be drawn at all; None: everything."""
    num_prompt_tokens: int

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        barred_ids: Sequence[int],
        num_prompt_tokens: int,
        vocab_size: int,
        device: torch.device,
    ) -> RowEdits | None:
        """None when nothing is to be changed. Ids outside the vocabulary have no logit."""

        def is_known(token_id: int) -> bool:
            return 0 <= token_id < vocab_size

        edits = cls(
            biases={id: bias for id, bias in params.logit_bias.items() if is_known(id)},
            barred_ids=sorted({id for id in barred_ids if is_known(id)}),
            first_stop_position=num_prompt_tokens + params.min_tokens,
            bad_sequences=[ids for ids in params.bad_word_token_ids if all(map(is_known, ids))],
            allowed=_mask(list(filter(is_known, params.allowed_token_ids)), vocab_size, device),
            num_prompt_tokens=num_prompt_tokens,
        )
        is_idle = not edits.biases and not edits.barred_ids and not edits.bad_sequences
        return None if is_idle and edits.allowed is None else edits


@dataclass(frozen=True, slots=True)
class EditBatch:
    """The edits of a batch's rows, on the device, laid end to end."""

    bias_rows: Tensor
    bias_ids: Tensor
    biases: Tensor
    barred_rows: Tensor
    barred_ids: Tensor
    first_stop_positions: Tensor
    """``int32``, one for each barred pair."""
    allowed_rows: Tensor
    allowed: Tensor | None
    """``[A, vocab], bool``, one for each of ``allowed_rows``."""
    bad_words: BadWordBatch | None

    @classmethod
    def of(
        cls, edits: Mapping[int, RowEdits], rows: Sequence[int], device: torch.device
    ) -> EditBatch:
        """``edits``: by row of the logits; ``rows``: the request row behind each."""
        biases = [(i, id, bias) for i, one in edits.items() for id, bias in one.biases.items()]
        barred = [
            (i, id, one.first_stop_position) for i, one in edits.items() for id in one.barred_ids
        ]
        masks = {i: one.allowed for i, one in edits.items() if one.allowed is not None}
        return cls(
            upload([i for i, _, _ in biases], torch.int64, device),
            upload([id for _, id, _ in biases], torch.int64, device),
            upload([bias for _, _, bias in biases], torch.float32, device),
            upload([i for i, _, _ in barred], torch.int64, device),
            upload([id for _, id, _ in barred], torch.int64, device),
            upload([position for _, _, position in barred], torch.int32, device),
            upload(list(masks), torch.int64, device),
            torch.stack(list(masks.values())) if masks else None,
            BadWordBatch.of(edits, rows, device),
        )

    def apply(self, logits: Tensor, positions: Tensor, history: Tensor | None) -> None:
        """Edit in place; ``logits: [R, vocab]``, ``positions: [R], int32``.

        ``history: [num_rows, max_len]``: the tokens of every request row, up to its position.
        """
        logits[self.bias_rows, self.bias_ids] += self.biases
        barred = self.barred_rows, self.barred_ids
        is_early = positions[self.barred_rows] < self.first_stop_positions
        logits[barred] = torch.where(is_early, float("-inf"), logits[barred])
        if self.allowed is not None:
            kept = torch.where(self.allowed, logits[self.allowed_rows], float("-inf"))
            logits[self.allowed_rows] = kept
        if self.bad_words is not None:
            assert history is not None, "bad words need what was drawn before"
            self.bad_words.apply(logits, positions, history)


@dataclass(frozen=True, slots=True)
class BadWordBatch:
    """Token sequences that must not be completed: B of them, for all rows of a batch.

    What was drawn is compared on the device, where the last token may be known alone. A sequence
    counts only where the output holds all of it: a word begun in the prompt may be finished.
    """

    rows: Tensor
    """``[B]``: rows of the logits."""
    request_rows: Tensor
    """``[B]``: rows of the history."""
    prefixes: Tensor
    """``[B, L], int32``: each sequence but its last id, padded on the left with :data:`_ANY`."""
    last_ids: Tensor
    first_positions: Tensor
    """``[B], int32``: where a sequence may end at the earliest."""

    @classmethod
    def of(
        cls, edits: Mapping[int, RowEdits], rows: Sequence[int], device: torch.device
    ) -> BadWordBatch | None:
        """See :meth:`EditBatch.of`; None when no row has any."""
        words = [(i, one, ids) for i, one in edits.items() for ids in one.bad_sequences]
        if not words:
            return None
        longest = max(len(ids) for _, _, ids in words) - 1
        prefixes = [[_ANY] * (longest + 1 - len(ids)) + list(ids[:-1]) for _, _, ids in words]
        firsts = [one.num_prompt_tokens + len(ids) - 1 for _, one, ids in words]
        return cls(
            upload([i for i, _, _ in words], torch.int64, device),
            upload([rows[i] for i, _, _ in words], torch.int64, device),
            upload(prefixes, torch.int32, device),
            upload([ids[-1] for _, _, ids in words], torch.int64, device),
            upload(firsts, torch.int32, device),
        )

    def apply(self, logits: Tensor, positions: Tensor, history: Tensor) -> None:
        """See :meth:`EditBatch.apply`."""
        at = positions[self.rows]
        is_due = at >= self.first_positions
        length = self.prefixes.shape[1]
        if length:
            back = torch.arange(-length, 0, device=logits.device)
            before = history[self.request_rows[:, None], (at[:, None] + back).clamp_min(0)]
            is_due &= ((before == self.prefixes) | (self.prefixes == _ANY)).all(dim=1)
        # Added, as two sequences may end in the same id and one of them not be due.
        bar = torch.where(is_due, float("-inf"), 0.0)
        logits.index_put_((self.rows, self.last_ids), bar, accumulate=True)


_ANY = -1
"""No token's id."""


def _mask(ids: Sequence[int], vocab_size: int, device: torch.device) -> Tensor | None:
    if not ids:
        return None
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[upload(ids, torch.int64, device)] = True
    return mask

"""Penalties on tokens that were seen before: tables on the device, one entry a token id.

Knows vLLM's definitions, which are Hugging Face's (repetition, over prompt and output) and
OpenAI's (presence and frequency, over the output alone). Tables exist only while a request needs
them, and are updated on the device from the sampled ids, so that the host need not know them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST_CAPACITY = 4


@dataclass(frozen=True, slots=True)
class PenaltyBatch:
    """The P penalised ones among a batch's rows of logits, on the device."""

    indices: Tensor
    """``[P], int64``: which rows of the logits."""
    slots: Tensor
    """``[P], int64``: which rows of the tables."""
    repetition: Tensor
    """``[P, 1], float32``; 1 means none."""
    presence: Tensor
    """``[P, 1], float32``; 0 means none."""
    frequency: Tensor
    """``[P, 1], float32``; 0 means none."""


class PenaltyTables:
    """What each penalised request has seen and produced.

    Five bytes a token id and slot; the tables double when all slots are held.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._prompt_seen = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._output_counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._free_slots: list[int] = []

    @property
    def capacity(self) -> int:
        """Slots there is memory for."""
        return len(self._prompt_seen)

    def hold(self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]) -> int:
        """Take a slot and fill it with a request's tokens so far; returns the slot."""
        if not self._free_slots:
            self._grow()
        slot = self._free_slots.pop()
        self._prompt_seen[slot].zero_()
        self._prompt_seen[slot, self._countable(prompt_token_ids)] = True
        outputs = self._countable(output_token_ids)
        counts = self._output_counts[slot].zero_()
        counts.index_add_(0, outputs, torch.ones_like(outputs, dtype=torch.int32))
        return slot

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._free_slots.append(slot)

    def apply(self, logits: Tensor, batch: PenaltyBatch) -> None:
        """Penalise in place; ``logits: [R, vocab], float32``."""
        counts = self._output_counts[batch.slots]
        produced = counts > 0
        seen = self._prompt_seen[batch.slots] | produced
        penalised = logits[batch.indices]
        factor = torch.where(seen, batch.repetition, 1.0)
        penalised = torch.where(penalised > 0, penalised / factor, penalised * factor)
        penalised -= batch.frequency * counts
        penalised -= batch.presence * produced
        logits[batch.indices] = penalised

    def record(self, token_ids: Tensor, batch: PenaltyBatch) -> None:
        """Count what was drawn; ``token_ids: [R], int64``, of all rows of the batch."""
        # Slots differ from one another, so no entry is written twice.
        self._output_counts[batch.slots, token_ids[batch.indices]] += 1

    def _countable(self, token_ids: Sequence[int]) -> Tensor:
        """The ids as a device tensor, less those outside the vocabulary: no logit is theirs."""
        ids = torch.tensor(token_ids, dtype=torch.int64)
        return ids[(ids >= 0) & (ids < self._vocab_size)].to(self._device)

    def _grow(self) -> None:
        old, new = self.capacity, max(_FIRST_CAPACITY, 2 * self.capacity)
        added = (new - old, self._vocab_size)
        self._prompt_seen = torch.cat([self._prompt_seen, self._prompt_seen.new_zeros(added)])
        self._output_counts = torch.cat([self._output_counts, self._output_counts.new_zeros(added)])
        self._free_slots += reversed(range(old, new))

"""Penalties on tokens that were seen before, kept and applied on the device.

Knows vLLM's definitions, which are Hugging Face's (repetition, over prompt and output) and
OpenAI's (presence and frequency, over the output alone). Tables exist only while a request needs
them, and are updated on the device from the sampled ids, so that the host need not know them.

Beside the tables every request has a list of the ids it has seen, repeats allowed: only those
logits are touched, so a step costs what the texts are long and not what the vocabulary is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.upload import upload

_FIRST_CAPACITY = 4
_FIRST_LENGTH = 256


@dataclass(frozen=True, slots=True)
class PenaltyBatch:
    """The P penalised ones among a batch's rows of logits, on the device."""

    indices: Tensor
    """``[P], int64``: which rows of the logits."""
    slots: Tensor
    """``[P], int64``: which rows of the tables; all different."""
    host_slots: tuple[int, ...]
    """The same, for the host."""
    repetition: Tensor
    """``[P, 1], float32``; 1 means none."""
    presence: Tensor
    """``[P, 1], float32``; 0 means none."""
    frequency: Tensor
    """``[P, 1], float32``; 0 means none."""


class PenaltyTables:
    """What each penalised request has seen and produced.

    Per slot five bytes a token id, and eight a token of the longest text. The tables double
    when all slots are held, the lists of seen ids when one is full.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._prompt_seen = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._output_counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        # Entries past a list's end are any valid id: one that was not seen is left as it is.
        self._seen_ids = torch.zeros(0, _FIRST_LENGTH, dtype=torch.int64, device=device)
        self._num_seen = torch.zeros(0, dtype=torch.int64, device=device)
        self._host_num_seen: list[int] = []
        self._free_slots: list[int] = []

    @property
    def capacity(self) -> int:
        """Slots there is memory for."""
        return len(self._prompt_seen)

    def hold(self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]) -> int:
        """Take a slot and fill it with a request's tokens so far; returns the slot."""
        if not self._free_slots:
            self._add_slots()
        slot = self._free_slots.pop()
        prompt, output = self._countable(prompt_token_ids), self._countable(output_token_ids)
        # Fills, as assigning a Python scalar by index would wait for the device.
        self._prompt_seen[slot].zero_().index_fill_(0, prompt, True)
        counts = self._output_counts[slot].zero_()
        counts.index_add_(0, output, torch.ones_like(output, dtype=torch.int32))
        # The device's count starts where the host's does; both grow by one a draw.
        seen = sorted({*prompt_token_ids, *output_token_ids})
        self._list_seen(slot, [id for id in seen if 0 <= id < self._vocab_size])
        return slot

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._free_slots.append(slot)

    def apply(self, logits: Tensor, batch: PenaltyBatch) -> None:
        """Penalise in place; ``logits: [R, vocab], float32``."""
        longest = max(self._host_num_seen[slot] for slot in batch.host_slots)
        rows, slots = batch.indices[:, None], batch.slots[:, None]
        ids = self._seen_ids[batch.slots, :longest]
        counts = self._output_counts[slots, ids]
        produced = counts > 0
        seen = self._prompt_seen[slots, ids] | produced
        values = logits[rows, ids]
        factor = torch.where(seen, batch.repetition, 1.0)
        values = torch.where(values > 0, values / factor, values * factor)
        values -= batch.frequency * counts
        values -= batch.presence * produced
        # An id that is listed twice is written twice, with the same value.
        logits[rows, ids] = values

    def record(self, token_ids: Tensor, batch: PenaltyBatch) -> None:
        """Count what was drawn; ``token_ids: [R], int64``, of all rows of the batch."""
        longest = max(self._host_num_seen[slot] for slot in batch.host_slots)
        if longest == self._seen_ids.shape[1]:
            self._lengthen(longest + 1)
        drawn = token_ids[batch.indices]
        self._output_counts[batch.slots, drawn] += 1
        self._seen_ids[batch.slots, self._num_seen[batch.slots]] = drawn
        self._num_seen[batch.slots] += 1
        for slot in batch.host_slots:
            self._host_num_seen[slot] += 1

    def _list_seen(self, slot: int, ids: Sequence[int]) -> None:
        if len(ids) > self._seen_ids.shape[1]:
            self._lengthen(len(ids))
        self._seen_ids[slot, : len(ids)] = upload(ids, torch.int64, self._device)
        self._num_seen[slot].fill_(len(ids))
        self._host_num_seen[slot] = len(ids)

    def _countable(self, token_ids: Sequence[int]) -> Tensor:
        """The ids as a device tensor, less those outside the vocabulary: no logit is theirs."""
        ids = [id for id in token_ids if 0 <= id < self._vocab_size]
        return upload(ids, torch.int64, self._device)

    def _add_slots(self) -> None:
        old, new = self.capacity, max(_FIRST_CAPACITY, 2 * self.capacity)
        self._prompt_seen = _with_rows(self._prompt_seen, new)
        self._output_counts = _with_rows(self._output_counts, new)
        self._seen_ids = _with_rows(self._seen_ids, new)
        self._num_seen = _with_rows(self._num_seen, new)
        self._host_num_seen += [0] * (new - old)
        self._free_slots += reversed(range(old, new))

    def _lengthen(self, length: int) -> None:
        old = self._seen_ids.shape[1]
        added = max(length, 2 * old) - old
        room = self._seen_ids.new_zeros(self.capacity, added)
        self._seen_ids = torch.cat([self._seen_ids, room], dim=1)


def _with_rows(table: Tensor, num_rows: int) -> Tensor:
    """The table with rows of zeros added."""
    return torch.cat([table, table.new_zeros(num_rows - len(table), *table.shape[1:])])

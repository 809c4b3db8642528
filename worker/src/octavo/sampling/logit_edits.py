"""Changes to single logits: biases, and stop tokens barred until enough tokens are drawn.

Both are lists of (row, token id) pairs, so their cost grows with the pairs and not with the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.upload import upload


@dataclass(frozen=True, slots=True)
class RowEdits:
    """What one request changes, on the device. Ids are within the vocabulary and unique."""

    bias_ids: Tensor
    """``[B], int64``."""
    biases: Tensor
    """``[B], float32``."""
    barred_ids: Tensor
    """``[N], int64``: not to be drawn before ``first_stop_position``."""
    first_stop_position: int

    @classmethod
    def of(
        cls,
        logit_bias: Mapping[int, float],
        barred_ids: Sequence[int],
        first_stop_position: int,
        vocab_size: int,
        device: torch.device,
    ) -> RowEdits | None:
        """None when nothing is to be changed. Ids outside the vocabulary have no logit."""
        biases = {id: bias for id, bias in logit_bias.items() if 0 <= id < vocab_size}
        barred = sorted({id for id in barred_ids if 0 <= id < vocab_size})
        if not biases and not barred:
            return None
        return cls(
            upload(list(biases), torch.int64, device),
            upload(list(biases.values()), torch.float32, device),
            upload(barred, torch.int64, device),
            first_stop_position,
        )


@dataclass(frozen=True, slots=True)
class EditBatch:
    """The edits of a batch's rows, laid end to end."""

    bias_rows: Tensor
    bias_ids: Tensor
    biases: Tensor
    barred_rows: Tensor
    barred_ids: Tensor
    first_stop_positions: Tensor
    """``int32``, one for each barred pair."""

    @classmethod
    def of(cls, edits: Mapping[int, RowEdits], device: torch.device) -> EditBatch:
        """``edits``: by row of the logits."""

        def spread(values: Sequence[int], sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
            pairs = zip(values, sizes, strict=True)
            return upload([value for value, size in pairs for _ in range(size)], dtype, device)

        rows, parts = list(edits), list(edits.values())
        num_biases = [len(part.bias_ids) for part in parts]
        num_barred = [len(part.barred_ids) for part in parts]
        positions = [part.first_stop_position for part in parts]
        return cls(
            spread(rows, num_biases, torch.int64),
            torch.cat([part.bias_ids for part in parts]),
            torch.cat([part.biases for part in parts]),
            spread(rows, num_barred, torch.int64),
            torch.cat([part.barred_ids for part in parts]),
            spread(positions, num_barred, torch.int32),
        )

    def apply(self, logits: Tensor, positions: Tensor) -> None:
        """Edit in place; ``logits: [R, vocab]``, ``positions: [R], int32``."""
        logits[self.bias_rows, self.bias_ids] += self.biases
        barred = self.barred_rows, self.barred_ids
        is_early = positions[self.barred_rows] < self.first_stop_positions
        logits[barred] = torch.where(is_early, float("-inf"), logits[barred])

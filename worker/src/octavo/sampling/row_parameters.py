"""Temperature, top-p, min-p, top-k and seed of every row, where the device finds them.

Knows how they are packed and sent; knows nothing of what else a request wants of its draws.
"""

from __future__ import annotations

import struct
from itertools import chain

import torch
from torch import Tensor

from octavo.kernels.interface import SamplingBatch
from octavo.kernels.upload import write_runs
from octavo.sampling_params import SamplingParams

_PARAMETERS = struct.Struct("=fffiQ")
"""Of a row: temperature, top-p, min-p, top-k and seed."""
_NUM_WORDS = _PARAMETERS.size // 4
_WORDS = struct.Struct(f"={_NUM_WORDS}i")


class RowParameters:
    """Of ``num_rows`` rows: one memory of 32-bit words, so that one transfer fills many rows."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._admitted: dict[int, tuple[int, ...]] = {}
        """What the device does not have yet, by row."""
        self._memory = torch.zeros(num_rows * _NUM_WORDS, dtype=torch.int32, device=device)
        self._words = self._memory.view(num_rows, _NUM_WORDS).t()
        self._seeds = self._memory.view(torch.int64)[_NUM_WORDS // 2 - 1 :: _NUM_WORDS // 2]

    def admit(self, row: int, params: SamplingParams, seed: int, vocab_size: int) -> None:
        """A request takes over a row; ``seed``: any 64 bits, signed or not."""
        temperature = 0.0 if params.is_greedy else params.temperature
        top_k = params.top_k if 0 < params.top_k < vocab_size else 0
        self._admitted[row] = _WORDS.unpack(
            _PARAMETERS.pack(temperature, params.top_p, params.min_p, top_k, seed % 2**64)
        )

    def write_admitted(self) -> None:
        """Send those of rows admitted since the last call to the device."""
        begins = [_NUM_WORDS * row for row in self._admitted]
        words = list(chain.from_iterable(self._admitted.values()))
        write_runs(self._memory, begins, [_NUM_WORDS] * len(begins), words)
        self._admitted.clear()

    def gather(
        self, rows: Tensor, positions: Tensor, all_greedy: bool, any_filter: bool
    ) -> SamplingBatch:
        """Of rows known to the device, as :meth:`write_admitted` wrote them: each parameter
        contiguous, as kernels want it. ``rows: [R], int64``; ``positions: [R], int32``."""
        words, seeds = self._words[:4].index_select(1, rows), self._seeds[rows]
        temperature, top_p, min_p = words[:3].view(torch.float32).unbind()
        return SamplingBatch(
            temperature, words[3], top_p, min_p, seeds, positions, all_greedy, any_filter
        )

"""Products whose bits do not depend on how many rows are multiplied together.

Libraries choose the order of their sums by the shape they are given. A product that is always
given the same number of rows always sums in one order.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.interface import Linear

_NUM_ROWS = 16
"""Few enough that one row is not much dearer, and whole passes of every inner loop in ``cpu``."""


class FixedRowsLinear:
    """A :class:`octavo.kernels.interface.Linear` that multiplies 16 rows at a time, no fewer."""

    def __init__(self, linear: Linear) -> None:
        self._linear = linear

    @property
    def in_features(self) -> int:
        return self._linear.in_features

    @property
    def out_features(self) -> int:
        return self._linear.out_features

    @property
    def size_bytes(self) -> int:
        return self._linear.size_bytes

    def __call__(self, x: Tensor) -> Tensor:
        num_rows = x.shape[0]
        padded = F.pad(x, (0, 0, 0, -num_rows % _NUM_ROWS))
        out = x.new_empty(padded.shape[0], self.out_features)
        for first in range(0, num_rows, _NUM_ROWS):
            out[first : first + _NUM_ROWS] = self._linear(padded[first : first + _NUM_ROWS])
        return out[:num_rows]

    def rows(self, ids: Tensor) -> Tensor:
        return self._linear.rows(ids)

"""Weights of a shape and without memory, for asking what a model would be like."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from octavo.kernels.interface import WeightPart

META = torch.device("meta")


class AbsentWeights:
    """A :class:`octavo.models.interface.WeightSource` that holds every name, on torch's meta
    device."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __contains__(self, name: str) -> bool:
        return True

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        return torch.empty(tuple(shape), device=META)

    def matrix(self, name: str, shape: tuple[int, int]) -> WeightPart:
        return torch.empty(shape, dtype=self._dtype, device=META)

    def check_all_used(self, can_ignore: Callable[[str], bool]) -> None:
        """Nothing can be left of what has no end."""

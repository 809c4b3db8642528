"""A weight source over tensors in memory, which remembers what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from octavo.errors import WeightError
from octavo.kernels.interface import WeightPart


class DictWeights:
    """A :class:`octavo.models.interface.WeightSource`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        return self._get(name, tuple(shape)).to(torch.float32)

    def matrix(self, name: str, shape: tuple[int, int]) -> WeightPart:
        return self._get(name, shape)

    def left_over(self) -> set[str]:
        return set(self._tensors) - self.used

    def _get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._tensors:
            raise WeightError(f"{name} is not in the checkpoint.")
        if self._tensors[name].shape != shape:
            raise WeightError(f"{name} is {tuple(self._tensors[name].shape)}, not {shape}.")
        self.used.add(name)
        return self._tensors[name]

"""Random weights of whatever shape is asked for: speed without a download.

Every tensor depends on the seed and its own name only, so it is the same whatever is asked before
it. Matrices are scaled by the square root of their inputs, so that activations stay finite in
any number of layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from octavo.kernels.interface import WeightPart

_POOL_VALUES = (1 << 22) + 15
"""Random values drawn once; matrices are windows of them. Odd, so that rows differ."""


class DummySource:
    """A :class:`octavo.models.interface.WeightSource` that holds every name.

    Tensors are made on ``device`` itself; matrices in ``dtype``.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self._device = device
        self._dtype = dtype
        self._seed = seed
        generator = torch.Generator(device).manual_seed(seed)
        self._pool = torch.randn(_POOL_VALUES, generator=generator, device=device)

    def __contains__(self, name: str) -> bool:
        return True

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """Norm weights near 1, biases near 0; float32."""
        values = torch.empty(tuple(shape), dtype=torch.float32, device=self._device)
        self._fill(values.view(-1), name, self._pool * 0.02)
        return values + 1.0 if name.endswith("norm.weight") else values

    def matrix(self, name: str, shape: tuple[int, int]) -> WeightPart:
        """Normally distributed, of variance 1 / in_features."""
        values = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._fill(values.view(-1), name, (self._pool * shape[1] ** -0.5).to(self._dtype))
        return values

    def check_all_used(self, can_ignore: Callable[[str], bool]) -> None:
        """Nothing can be left of what has no end."""

    def _fill(self, values: Tensor, name: str, pool: Tensor) -> None:
        """Windows of the pool, the first at a place that follows from the name."""
        digest = hashlib.blake2b(f"{self._seed}/{name}".encode(), digest_size=8).digest()
        offset = int.from_bytes(digest) % _POOL_VALUES
        start = 0
        while start < len(values):
            size = min(len(values) - start, _POOL_VALUES - offset)
            values[start : start + size] = pool[offset : offset + size]
            start += size
            offset = 0

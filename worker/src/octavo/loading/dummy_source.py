"""Random weights of whatever shape is asked for: speed without a download.

Every tensor depends on the seed and its own name only, so it is the same whatever is asked before
it. Matrices are scaled by the square root of their inputs, so that activations stay finite in
any number of layers.
"""

from __future__ import annotations

import hashlib
import math
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
        pool = torch.randn(_POOL_VALUES, generator=generator, device=device)
        self._pool = pool.to(dtype)  # rounded here, so that drawing only copies

    def __contains__(self, name: str) -> bool:
        return True

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """Norm weights near 1, biases near 0; float32."""
        values = self._draw(name, tuple(shape), torch.float32).mul_(0.02)
        return values.add_(1.0) if name.endswith("norm.weight") else values

    def matrix(self, name: str, shape: tuple[int, int]) -> WeightPart:
        """Normally distributed, of variance 1 / in_features."""
        return self._draw(name, shape, self._dtype).mul_(shape[1] ** -0.5)

    def check_all_used(self, can_ignore: Callable[[str], bool]) -> None:
        """Nothing can be left of what has no end."""

    def _draw(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Windows of the pool, the first at a place that follows from the name."""
        values = torch.empty(math.prod(shape), dtype=dtype, device=self._device)
        digest = hashlib.blake2b(f"{self._seed}/{name}".encode(), digest_size=8).digest()
        offset = int.from_bytes(digest) % _POOL_VALUES
        start = 0
        while start < len(values):
            size = min(len(values) - start, _POOL_VALUES - offset)
            values[start : start + size] = self._pool[offset : offset + size]
            start += size
            offset = 0
        return values.view(shape)

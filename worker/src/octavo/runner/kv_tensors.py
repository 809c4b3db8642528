"""The memory of the paged KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.models.interface import CausalLM


class KVTensors:
    """One allocation for all layers, cut into pages.

    ``layers[i]`` is ``(key_cache, value_cache)``, each
    ``[num_blocks, num_kv_heads, block_size, head_dim]`` and contiguous.
    """

    def __init__(
        self,
        model: CausalLM,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_blocks, model.num_kv_heads, block_size, model.head_dim)
        # Left uninitialised: on the CPU pages are then mapped when first written.
        self.storage = torch.empty(model.num_layers, 2, *shape, dtype=dtype, device=device)
        self.layers: list[tuple[Tensor, Tensor]] = [
            (self.storage[layer, 0], self.storage[layer, 1]) for layer in range(model.num_layers)
        ]


def block_size_bytes(model: CausalLM, block_size: int, dtype: torch.dtype) -> int:
    """Bytes one block takes over all layers, keys and values."""
    per_layer = 2 * model.num_kv_heads * block_size * model.head_dim * dtype.itemsize
    return per_layer * model.num_layers

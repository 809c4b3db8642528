"""What the rest of the engine knows of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels.adapters import AdapterStep, Projection
from octavo.kernels.interface import AttentionBatch, Linear, WeightPart


class WeightSource(Protocol):
    """Named tensors of a checkpoint, under Hugging Face's names (``model.layers.0...``).

    A model pulls what it needs; the source checks shapes and, at the end, that nothing was
    left. Implementations live in ``loading/``: safetensors, GGUF, dummy.
    """

    def __contains__(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor (a dummy source holds every one)."""

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """A small dense tensor (norm weight, bias) as float32.

        Raises :class:`octavo.errors.WeightError` when absent or of another shape.
        """

    def matrix(self, name: str, shape: tuple[int, int]) -> WeightPart:
        """A matrix ``[out_features, in_features]`` in the dtype it is stored in."""


class CausalLM(Protocol):
    """A decoder language model, its weights prepared for one set of kernels."""

    @property
    def num_layers(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def activation_dtype(self) -> torch.dtype:
        """That of hidden states and logits, which the KV cache's need not be."""

    @property
    def weights_size_bytes(self) -> int: ...

    @property
    def projections(self) -> Sequence[Projection]:
        """The products that adapters may change, in the order their indices count."""

    @property
    def adapted(self) -> Sequence[Linear]:
        """Those products themselves."""

    @property
    def products(self) -> Sequence[Linear]:
        """One product of each shape that a layer has, and last that which gives the logits."""

    def forward(
        self,
        token_ids: Tensor,
        kv_caches: Sequence[tuple[Tensor, Tensor]],
        batch: AttentionBatch,
        adapters: AdapterStep | None = None,
        is_last_only: bool = False,
    ) -> Tensor:
        """``token_ids: [T], int32`` → hidden states ``[T, hidden_size]`` after the last norm.

        ``kv_caches[layer]``: ``(key_cache, value_cache)`` as in :mod:`octavo.kernels.interface`.
        ``adapters``: None where no token has one. ``is_last_only``: return ``[S, hidden_size]``,
        those of each sequence's last token, and compute no more than they need; a sequence
        without tokens gets something meaningless.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """``hidden: [R, hidden_size]`` → ``[R, vocab_size]``, same dtype."""

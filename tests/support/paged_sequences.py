"""Runs a model over several sequences at once through paged caches, as a runner would.

Blocks are handed out in random order, so that a model which ignores its block tables fails.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from octavo.kernels.interface import AttentionBatch
from octavo.models.interface import CausalLM


class PagedSequences:
    """Sequences of one model, fed piece by piece."""

    def __init__(
        self,
        model: CausalLM,
        *,
        block_size: int = 4,
        num_blocks: int = 128,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        self._model = model
        self._block_size = block_size
        shape = (num_blocks, model.num_kv_heads, block_size, model.head_dim)
        # Noise in unused slots shows a read past a sequence's end.
        self._caches = [
            (torch.full(shape, 1e4, dtype=dtype), torch.full(shape, 1e4, dtype=dtype))
            for _ in range(model.num_layers)
        ]
        self._free_blocks = list(range(num_blocks))
        random.Random(seed).shuffle(self._free_blocks)
        self._blocks: dict[str, list[int]] = {}
        self._lengths: dict[str, int] = {}

    def step(self, pieces: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Feed each named sequence its next tokens, all in one batch.

        Returns for each the logits after every fed token: ``[len(piece), vocab_size]``.
        """
        # Sequences with one new token come first.
        names = sorted(pieces, key=lambda name: len(pieces[name]) > 1)
        batch = self._attention_batch(names, pieces)
        tokens = [token for name in names for token in pieces[name]]
        token_ids = torch.tensor(tokens, dtype=torch.int32)
        hidden = self._model.forward(token_ids, self._caches, batch)
        logits = self._model.logits(hidden)
        sizes = [len(pieces[name]) for name in names]
        return dict(zip(names, torch.split(logits, sizes), strict=True))

    def _attention_batch(
        self, names: Sequence[str], pieces: Mapping[str, Sequence[int]]
    ) -> AttentionBatch:
        starts: list[int] = [0]
        positions: list[int] = []
        slots: list[int] = []
        for name in names:
            start = self._lengths.get(name, 0)
            end = start + len(pieces[name])
            blocks = self._grow(name, end)
            positions += range(start, end)
            slots += [
                blocks[position // self._block_size] * self._block_size
                + position % self._block_size
                for position in range(start, end)
            ]
            starts.append(starts[-1] + len(pieces[name]))
        context_lens = [self._lengths[name] for name in names]
        width = max(len(self._blocks[name]) for name in names)
        tables = [self._blocks[name] + [0] * (width - len(self._blocks[name])) for name in names]
        return AttentionBatch(
            query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor(context_lens, dtype=torch.int32),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            positions=torch.tensor(positions, dtype=torch.int32),
            slots=torch.tensor(slots, dtype=torch.int32),
            num_decodes=sum(len(pieces[name]) == 1 for name in names),
            max_query_len=max(len(pieces[name]) for name in names),
            max_context_len=max(context_lens),
        )

    def _grow(self, name: str, length: int) -> list[int]:
        blocks = self._blocks.setdefault(name, [])
        while len(blocks) * self._block_size < length:
            blocks.append(self._free_blocks.pop())
        self._lengths[name] = length
        return blocks

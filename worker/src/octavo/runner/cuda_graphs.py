"""Decode steps as CUDA graphs: from row numbers to drawn ids in one launch.

A step in which every row computes one token and draws is captured once for each padded batch
size and kind of draw, and replayed ever after; the host uploads which rows run and where they
stand, nothing else. Graphs are captured when first needed and share one memory pool, as their
steps never overlap.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.interface import AttentionBatch, Kernels, SamplingBatch
from octavo.models.interface import CausalLM
from octavo.runner.kv_tensors import KVTensors
from octavo.runner.rows import Rows
from octavo.sampling.sampler import DrawKind, Sampler

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
_NUM_UPLOADS = 4
"""Pinned buffers in turn: an upload may still be under way when the next step is prepared."""


class DecodeGraphs:
    """Captured decode steps of one model.

    Rows tables and sampler need one row more than requests can have: padding lanes run on it,
    see an empty context and write nowhere but there.
    """

    def __init__(
        self,
        model: CausalLM,
        kernels: Kernels,
        kv: KVTensors,
        rows: Rows,
        sampler: Sampler,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        self._model, self._kernels, self._kv = model, kernels, kv
        self._rows, self._sampler = rows, sampler
        self._max_model_len = max_model_len
        self._padding_row = max_num_seqs
        self._sizes = [size for size in _SIZES if size < max_num_seqs] + [max_num_seqs]
        device = rows.device
        self._inputs = torch.zeros(2, max_num_seqs, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self._uploads = [
            torch.zeros(2, max_num_seqs, dtype=torch.int64).pin_memory()
            for _ in range(_NUM_UPLOADS)
        ]
        self._num_replays = 0
        self._graphs: dict[tuple[int, DrawKind], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def num_graphs(self) -> int:
        """How many are captured."""
        return len(self._graphs)

    def run(self, row_numbers: Sequence[int], starts: Sequence[int], kind: DrawKind) -> Tensor:
        """Compute and draw one token for each row.

        ``starts``: position of the token each row computes. Returns ids ``[R], int64`` on the
        device, valid until the next run; the rows remember them already.
        """
        count = len(row_numbers)
        size = self._sizes[bisect_left(self._sizes, count)]
        self._upload(row_numbers, starts, size)
        graph = self._graphs.get((size, kind))
        if graph is None:
            graph = self._graphs[size, kind] = self._capture(size, kind)
        graph.replay()
        return self._drawn[:count]

    def _upload(self, row_numbers: Sequence[int], starts: Sequence[int], size: int) -> None:
        upload = self._uploads[self._num_replays % _NUM_UPLOADS]
        self._num_replays += 1
        count = len(row_numbers)
        upload[:, :count] = torch.tensor([row_numbers, starts], dtype=torch.int64)
        upload[0, count:size] = self._padding_row
        upload[1, count:size] = 0
        self._inputs[:, :size].copy_(upload[:, :size], non_blocking=True)

    def _capture(self, size: int, kind: DrawKind) -> torch.cuda.CUDAGraph:
        # Once outside: compiles kernels and lets libraries allocate their workspaces. Its draws
        # are the same as the replay's, so running twice does no harm.
        self._step(size, kind)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._step(size, kind)
        return graph

    def _step(self, size: int, kind: DrawKind) -> None:
        rows, block_size = self._rows, self._rows.block_size
        row, start = self._inputs[0, :size], self._inputs[1, :size]
        is_padding = row == self._padding_row
        after = start + 1
        block = rows.block_tables[row, start // block_size]
        slots = block * block_size + (start % block_size).to(torch.int32)
        attention = AttentionBatch(
            query_starts=torch.arange(size + 1, dtype=torch.int32, device=rows.device),
            context_lens=after.masked_fill(is_padding, 0).to(torch.int32),
            block_tables=rows.block_tables[row],
            positions=start.to(torch.int32),
            slots=slots.masked_fill(is_padding, -1),
            num_decodes=size,
            max_query_len=1,
            max_context_len=self._max_model_len,
        )
        hidden = self._model.forward(rows.token_ids[row, start], self._kv.layers, attention)
        logits = self._model.logits(hidden)
        batch: SamplingBatch = self._sampler.gather(row, after.to(torch.int32), kind)
        drawn = self._kernels.sample(logits, batch)
        rows.token_ids[row, after] = drawn.to(torch.int32)
        self._drawn[:size] = drawn

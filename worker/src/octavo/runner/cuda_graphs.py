"""Small steps as CUDA graphs: from a table of sequences to drawn ids in one launch.

A step is captured once for each padded shape and kind of draw, and replayed ever after; the
host uploads the table, nothing else. Graphs are captured when first needed and share one memory
pool, since their steps never overlap. Steps with more tokens run eagerly: there the device takes
longer than the host needs to launch.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.batch import BatchPlan
from octavo.kernels.adapters import Adapters
from octavo.kernels.interface import Kernels
from octavo.models.interface import CausalLM
from octavo.runner.batch_tensors import SequenceTable, expand
from octavo.runner.kv_tensors import KVTensors
from octavo.runner.rows import Rows
from octavo.sampling.sampler import DrawKind, Sampler

_DECODE_SIZES = (
    1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512,
)  # fmt: skip
_MIXED_TOKENS = (16, 32, 64, 128, 192, 256, 384, 512, 576, 640, 768, 896, 1024)
_MIXED_SEQUENCES = (4, 16, 64, 128, 256, 512)
_NUM_UPLOADS = 4
"""Pinned buffers in turn: an upload may still be under way when the next step is prepared."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a captured step is made for."""

    num_tokens: int
    num_sequences: int
    kind: DrawKind
    has_adapters: bool = False
    """Whether tokens may have adapters: a step without any costs what it would if there were
    none."""

    @property
    def is_decode(self) -> bool:
        """Whether every sequence computes one token; otherwise any numbers of them."""
        return self.num_tokens == self.num_sequences


class StepGraphs:
    """Captured steps of one model.

    Rows and sampler need one row more than requests can have: padding runs on it, sees an empty
    context and writes nowhere but there.
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
        adapters: Adapters | None = None,
    ) -> None:
        self._model, self._kernels, self._kv = model, kernels, kv
        self._adapters = adapters
        self._rows, self._sampler = rows, sampler
        self._max_model_len = max_model_len
        self._padding_row = max_num_seqs
        self._decode_sizes = _up_to(_DECODE_SIZES, max_num_seqs)
        self._mixed_sequences = _up_to(_MIXED_SEQUENCES, max_num_seqs)
        device = rows.device
        # Rows: row number, start, count, whether it draws.
        self._table = torch.zeros(4, max_num_seqs, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self._uploads = [
            torch.zeros(4, max_num_seqs, dtype=torch.int64, pin_memory=device.type == "cuda")
            for _ in range(_NUM_UPLOADS)
        ]
        self._num_runs = 0
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @property
    def num_graphs(self) -> int:
        """How many are captured."""
        return len(self._graphs)

    def shape_for(
        self, plan: BatchPlan, kind: DrawKind, has_adapters: bool = False
    ) -> StepShape | None:
        """The padded shape that serves a plan; None if it is too large for one."""
        num_sequences, num_tokens = len(plan.rows), plan.total_tokens
        if plan.num_decodes == num_sequences:
            size = _at_least(self._decode_sizes, num_sequences)
            return StepShape(size, size, kind, has_adapters)
        if num_tokens > _MIXED_TOKENS[-1]:
            return None
        sequences = _at_least(self._mixed_sequences, num_sequences)
        tokens = _at_least(_MIXED_TOKENS, num_tokens)
        # One token more than sequences tells a mixed shape from a decode's.
        return StepShape(tokens + (tokens == sequences), sequences, kind, has_adapters)

    def run(self, plan: BatchPlan, shape: StepShape) -> Tensor:
        """Carry out a plan; returns what each of its sequences drew, ``[S], int64``.

        Sequences that do not draw yet have a meaningless id there. The rows remember the drawn
        tokens already; the tensor is valid until the next run.
        """
        self._upload(plan, shape)
        graph = self._graphs.get(shape)
        if graph is None:
            graph = self._graphs[shape] = self._capture(shape)
        graph.replay()
        return self._drawn[: len(plan.rows)]

    def _upload(self, plan: BatchPlan, shape: StepShape) -> None:
        upload = self._uploads[self._num_runs % _NUM_UPLOADS]
        self._num_runs += 1
        count, size = len(plan.rows), shape.num_sequences
        upload[:, :count] = torch.tensor(
            [plan.rows, plan.starts, plan.num_tokens, plan.samples], dtype=torch.int64
        )
        if count < size:
            upload[:, count:size] = 0
            upload[0, count:size] = self._padding_row
        self._table[:, :size].copy_(upload[:, :size], non_blocking=True)

    def _capture(self, shape: StepShape) -> torch.cuda.CUDAGraph:
        # Once outside: compiles kernels and lets libraries allocate their workspaces. It draws
        # what the replay will draw, so running twice does no harm.
        self.step(shape)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self.step(shape)
        return graph

    def step(self, shape: StepShape) -> None:
        """The step itself on the uploaded table: what is captured."""
        row, start, count, draws = self._table[:, : shape.num_sequences].unbind()
        table = SequenceTable(
            row,
            start,
            torch.ones_like(count) if shape.is_decode else count,
            num_tokens=shape.num_tokens,
            num_decodes=shape.num_sequences if shape.is_decode else 0,
            max_query_len=1 if shape.is_decode else shape.num_tokens,
            max_context_len=self._max_model_len,
        )
        token_ids, attention, token_row = expand(self._rows, table, self._padding_row)
        adapters = None
        if shape.has_adapters:
            assert self._adapters is not None, "a row has an adapter, and there are none"
            adapters = self._adapters.step(self._rows.adapter_slots[token_row])
        hidden = self._model.forward(token_ids, self._kv.layers, attention, adapters)
        if not shape.is_decode:
            last = attention.query_starts[1:].long() - 1
            hidden = hidden[last.clamp_min(0)]
        logits = self._model.logits(hidden)
        batch = self._sampler.gather(row, table.after.to(torch.int32), shape.kind)
        drawn = self._kernels.sample(logits, batch)
        # A chunk that does not draw must not overwrite the prompt's next token.
        target = row if shape.is_decode else torch.where(draws > 0, row, self._padding_row)
        self._rows.token_ids[target, table.after] = drawn.to(torch.int32)
        self._drawn[: shape.num_sequences] = drawn


def _up_to(sizes: tuple[int, ...], limit: int) -> list[int]:
    return [size for size in sizes if size < limit] + [limit]


def _at_least(sizes: list[int] | tuple[int, ...], number: int) -> int:
    return sizes[bisect_left(sizes, number)]

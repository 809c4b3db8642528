"""Small steps as CUDA graphs: from a table of sequences to drawn ids in one launch.

A step is captured once for each padded shape and kind of draw, and replayed ever after; the
host uploads the table, nothing else. All graphs share one memory pool, since their steps never
overlap. A few are captured at start, the usual others whenever the engine has nothing to do, and
any that is missing at its first use. To capture a step takes the host as long as to launch it, so
none is launched first. Steps with more tokens run eagerly: there the device takes longer than the
host needs to launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from octavo.batch import BatchPlan
from octavo.kernels.adapters import Adapters, AdapterUse
from octavo.kernels.interface import Kernels
from octavo.kernels.upload import write
from octavo.models.interface import CausalLM
from octavo.runner.batch_tensors import SequenceTable, expand, padded_shared_lens
from octavo.runner.kv_tensors import KVTensors
from octavo.runner.rows import Rows
from octavo.runner.step_shapes import StepShape, StepShapes
from octavo.sampling.sampler import DrawKind, Sampler

MAX_GRAPHS = 256
"""Each takes some memory of the device and the host that no allocator counts."""
_KEPT_FREE = 32
"""For shapes that only load brings: decodes beside prompts."""


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
        shapes: StepShapes,
        max_num_seqs: int,
        max_model_len: int,
        adapters: Adapters | None = None,
    ) -> None:
        self._model, self._kernels, self._kv = model, kernels, kv
        self._adapters = adapters
        self._rows, self._sampler = rows, sampler
        self._max_model_len = max_model_len
        self._padding_row = max_num_seqs
        self.shapes = shapes
        device = rows.device
        size = shapes.max_num_sequences
        self._tables = torch.zeros(5 * size, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(size, dtype=torch.int64, device=device)
        self._hidden: Tensor | None = None
        """Where steps that draw later leave off."""
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self._to_prepare = shapes.by_use()
        is_cuda = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if is_cuda else None
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]

    @property
    def num_graphs(self) -> int:
        """How many are captured."""
        return len(self._graphs)

    def shape_for(
        self, plan: BatchPlan, kind: DrawKind, adapters: AdapterUse = AdapterUse.NONE
    ) -> StepShape | None:
        """The padded shape that serves a plan; None if it is to run eagerly."""
        shape = self.shapes.shape_for(plan, kind, adapters)
        if shape not in self._graphs and len(self._graphs) >= MAX_GRAPHS:
            return None
        return shape

    def prepare_next(self) -> bool:
        """Capture one more of the usual shapes; False when all of them are, or as many as leave
        room for others."""
        if len(self._graphs) >= MAX_GRAPHS - _KEPT_FREE:
            return False
        for shape in self._to_prepare:
            if shape not in self._graphs:
                self._graphs[shape] = self._capture(shape)
                return True
        return False

    def run_padding(self, shape: StepShape) -> None:
        """A step of this shape without a request, eagerly: compiles and allocates all it needs."""
        self._upload(BatchPlan(), shape)
        self.step(shape)

    def run(self, plan: BatchPlan, shape: StepShape) -> Tensor:
        """Carry out a plan; returns what each place of the shape drew, ``[S], int64``.

        Places that do not draw have a meaningless id there. The rows remember the drawn tokens
        already; the tensor is valid until the next run.
        """
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(shape)
        self._upload(plan, shape)
        self._graphs[shape].replay()
        return self._drawn[: shape.num_sequences]

    def run_until_hidden(self, plan: BatchPlan, shape: StepShape) -> Tensor:
        """The part of a step before its draw, for a shape of kind LATER; returns the last hidden
        state of each place, ``[S, hidden_size]``, valid until the next run."""
        self.run(plan, shape)
        assert self._hidden is not None, "the step has run"
        return self._hidden[: shape.num_sequences]

    def _table_of(self, shape: StepShape) -> Tensor:
        """``[5 * S]``, at the same place for every shape: row numbers, starts, counts, rows that
        get what is drawn, shared tokens."""
        return self._tables[: 5 * shape.num_sequences]

    def _upload(self, plan: BatchPlan, shape: StepShape) -> None:
        shared_lens = padded_shared_lens(plan)
        columns: list[Sequence[int]] = [
            *(plan.rows, plan.starts, plan.num_tokens, self._targets(plan), shared_lens)
        ]
        num_decodes = plan.num_decodes
        missing = shape.num_decodes - num_decodes
        after = shape.num_sequences - missing - len(plan.rows)
        if missing or after:
            # A padding decode computes a token, for nobody.
            nobody = self._padding_row
            decode, other = (nobody, 0, 1, nobody, 0), (nobody, 0, 0, nobody, 0)
            columns = [
                [*column[:num_decodes], *[x] * missing, *column[num_decodes:], *[y] * after]
                for column, x, y in zip(columns, decode, other, strict=True)
            ]
        write([self._table_of(shape)], list(chain.from_iterable(columns)))

    def _targets(self, plan: BatchPlan) -> list[int]:
        """The rows that are given what is drawn: a chunk that does not draw, even if of one token,
        must not have the prompt's next token overwritten."""
        if all(plan.samples):
            return plan.rows
        pairs = zip(plan.rows, plan.samples, strict=True)
        return [row if draws else self._padding_row for row, draws in pairs]

    def _capture(self, shape: StepShape) -> torch.cuda.CUDAGraph:
        """Record a step. What it needs is compiled, or is compiled and loaded meanwhile.

        As ``torch.cuda.graph`` does, but without its wait for the device and its collection of
        garbage: nothing of a capture but loading a kernel for the first time waits for the device,
        which may be busy with a step.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                self.step(shape)
            finally:
                graph.capture_end()
        return graph

    def step(self, shape: StepShape) -> None:
        """The step itself on the uploaded table: what is captured."""
        row, start, count, target, shared_len = self._table_of(shape).view(5, -1).unbind()
        table = SequenceTable(
            row,
            start,
            count,
            num_tokens=shape.num_tokens,
            num_decodes=shape.num_decodes,
            max_query_len=1 if shape.is_decode else shape.num_tokens,
            max_context_len=self._max_model_len,
            shared_len=shared_len if shape.shares else None,
        )
        token_ids, attention, token_row = expand(self._rows, table, self._padding_row)
        adapters = None
        if shape.adapters is not AdapterUse.NONE:
            assert self._adapters is not None, "a row has an adapter, and there are none"
            slots = self._rows.adapter_slots[token_row]
            adapters = self._adapters.step(slots, shape.adapters)
        hidden = self._model.forward(
            token_ids, self._kv.layers, attention, adapters, is_last_only=True
        )
        if shape.kind is DrawKind.LATER:
            if self._hidden is None:
                self._hidden = hidden.new_empty(len(self._drawn), hidden.shape[1])
            self._hidden[: shape.num_sequences] = hidden
            return
        logits = self._model.logits(hidden)
        batch = self._sampler.gather(row, table.after.to(torch.int32), shape.kind)
        drawn = self._kernels.sample(logits, batch)
        self._rows.token_ids[target, table.after] = drawn.to(torch.int32)
        self._drawn[: shape.num_sequences] = drawn

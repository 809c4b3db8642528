"""Carries out a plan: inputs from rows, the model, the draw, tokens back to the rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.batch import BatchPlan, StepHandle, StepResult
from octavo.kernels.adapters import Adapters
from octavo.models.interface import CausalLM
from octavo.runner.batch_tensors import expand, sequence_table
from octavo.runner.cuda_graphs import StepGraphs
from octavo.runner.kv_tensors import KVTensors
from octavo.runner.prompt_reader import PendingRead, PromptReader
from octavo.runner.rows import Rows
from octavo.runner.step_shapes import StepShape
from octavo.sampling.sampler import SampledTokens, Sampler


class ModelRunner:
    """Runs one model on one device. Not thread-safe: the engine's loop is its only caller.

    ``graphs``: captured decode steps (CUDA only); None runs every step eagerly. ``adapters``: None
    where no request can have one.
    """

    def __init__(
        self,
        model: CausalLM,
        kv: KVTensors,
        rows: Rows,
        sampler: Sampler,
        graphs: StepGraphs | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self._model = model
        self._kv = kv
        self._rows = rows
        self._sampler = sampler
        self._graphs = graphs
        self._adapters = adapters
        self._prompts = PromptReader(model, rows)

    @torch.inference_mode()
    def execute(self, plan: BatchPlan) -> StepHandle:
        """Start a step; its handle resolves when the device is done."""
        self._take_over_rows(plan)
        if not plan.rows:
            return _Nothing()
        if self._graphs is not None and not plan.readings:
            kind = self._sampler.kind_of(plan.rows)
            has_adapters = self._rows.has_adapters(plan)
            shape = None if kind is None else self._graphs.shape_for(plan, kind, has_adapters)
            if shape is not None:
                return self._replay(self._graphs, plan, shape)
        return self._execute_eagerly(plan)

    @torch.inference_mode()
    def prepare_next(self) -> bool:
        """Capture one more step ahead of its first use; False when there is nothing to prepare.

        Only while no step is under way.
        """
        return self._graphs is not None and self._graphs.prepare_next()

    def close(self) -> None:
        """Drop the device's memory; may be called twice."""
        self.__dict__.clear()

    def _take_over_rows(self, plan: BatchPlan) -> None:
        for row in plan.released_rows:
            self._sampler.release(row)
        self._rows.apply(plan)
        for admission in plan.admissions:
            self._sampler.admit(
                admission.row,
                admission.params,
                admission.seed,
                admission.token_ids[: admission.num_prompt_tokens],
                admission.token_ids[admission.num_prompt_tokens :],
                admission.stop_token_ids,
            )

    def _replay(self, graphs: StepGraphs, plan: BatchPlan, shape: StepShape) -> StepHandle:
        drawn = graphs.run(plan, shape)
        if all(plan.samples) and shape.place_of(len(plan.rows) - 1, plan) == len(plan.rows) - 1:
            return _Step(SampledTokens(drawn[: len(plan.rows)], None))
        places = [shape.place_of(i, plan) for i, draws in enumerate(plan.samples) if draws]
        return _Step(SampledTokens(drawn, None), places)

    def _execute_eagerly(self, plan: BatchPlan) -> StepHandle:
        table = sequence_table(plan, self._rows.device)
        token_ids, attention, token_row = expand(self._rows, table)
        adapters = None
        if self._adapters is not None and self._rows.has_adapters(plan):
            adapters = self._adapters.step(self._rows.adapter_slots[token_row])
        hidden = self._model.forward(token_ids, self._kv.layers, attention, adapters)
        drawing = [index for index, draws in enumerate(plan.samples) if draws]
        reads = self._prompts.read(plan, hidden) if plan.readings else []
        if not drawing:
            return _Nothing(reads)
        if not table.is_decode:
            hidden = hidden[attention.query_starts[1:].long() - 1]
        row, after, rows = table.row, table.after, plan.rows
        if len(drawing) < len(plan.rows):
            chosen = torch.tensor(drawing, dtype=torch.int64, device=hidden.device)
            hidden, row, after = hidden[chosen], row[chosen], after[chosen]
            rows = [plan.rows[index] for index in drawing]
        logits = self._model.logits(hidden)
        sampled = self._sampler.sample(logits, rows, after, self._rows.token_ids)
        self._rows.token_ids[row, after] = sampled.token_ids.to(torch.int32)
        return _Step(sampled, reads=reads)


class _Nothing:
    """A step that drew nothing."""

    def __init__(self, reads: Sequence[PendingRead] = ()) -> None:
        self._reads = reads

    def result(self) -> StepResult:
        return StepResult([], prompts=[read.result() for read in self._reads])


class _Step:
    """A step on its way; on CUDA the ids come through a pinned copy and an event.

    ``chosen``: which of the ids count; None: all.
    """

    def __init__(
        self,
        sampled: SampledTokens,
        chosen: list[int] | None = None,
        reads: Sequence[PendingRead] = (),
    ) -> None:
        self._sampled = sampled
        self._reads = reads
        self._chosen = chosen
        self._ids = sampled.token_ids
        self._event: torch.cuda.Event | None = None
        if self._ids.is_cuda:
            self._ids = torch.empty_like(self._ids, device="cpu", pin_memory=True)
            self._ids.copy_(sampled.token_ids, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def result(self) -> StepResult:
        if self._event is not None:
            self._event.synchronize()
        token_ids = self._ids.tolist()
        if self._chosen is not None:
            token_ids = [token_ids[index] for index in self._chosen]
        prompts = [read.result() for read in self._reads]
        return StepResult(token_ids, self._sampled.to_host_logprobs(), prompts)

"""Carries out a plan: inputs from rows, the model, the draw, tokens back to the rows."""

from __future__ import annotations

import torch

from octavo.batch import BatchPlan, StepHandle, StepResult
from octavo.models.interface import CausalLM
from octavo.runner.batch_tensors import build_batch_tensors
from octavo.runner.cuda_graphs import DecodeGraphs
from octavo.runner.kv_tensors import KVTensors
from octavo.runner.rows import Rows
from octavo.sampling.sampler import SampledTokens, Sampler


class ModelRunner:
    """Runs one model on one device. Not thread-safe: the engine's loop is its only caller.

    ``graphs``: captured decode steps (CUDA only); None runs every step eagerly.
    """

    def __init__(
        self,
        model: CausalLM,
        kv: KVTensors,
        rows: Rows,
        sampler: Sampler,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._model = model
        self._kv = kv
        self._rows = rows
        self._sampler = sampler
        self._graphs = graphs

    @torch.inference_mode()
    def execute(self, plan: BatchPlan) -> StepHandle:
        """Start a step; its handle resolves when the device is done."""
        self._take_over_rows(plan)
        if not plan.rows:
            return _Nothing()
        if self._graphs is not None and plan.num_decodes == len(plan.rows):
            kind = self._sampler.kind_of(plan.rows)
            if kind is not None:
                drawn = self._graphs.run(plan.rows, plan.starts, kind)
                return _Step(SampledTokens(drawn, None))
        return self._execute_eagerly(plan)

    def close(self) -> None:
        """Drop the device's memory."""
        del self._model, self._kv, self._rows, self._sampler, self._graphs

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

    def _execute_eagerly(self, plan: BatchPlan) -> StepHandle:
        batch = build_batch_tensors(self._rows, plan)
        hidden = self._model.forward(batch.token_ids, self._kv.layers, batch.attention)
        if not batch.sampled_rows:
            return _Nothing()
        if batch.sample_indices is not None:
            hidden = hidden[batch.sample_indices]
        sampled = self._sampler.sample(
            self._model.logits(hidden), batch.sampled_rows, batch.sampled_positions
        )
        self._rows.token_ids[batch.sampled_row_indices, batch.sampled_positions] = (
            sampled.token_ids.to(torch.int32)
        )
        return _Step(sampled)


class _Nothing:
    """A step that drew nothing."""

    def result(self) -> StepResult:
        return StepResult([])


class _Step:
    """A step on its way; on CUDA the ids come through a pinned copy and an event."""

    def __init__(self, sampled: SampledTokens) -> None:
        self._sampled = sampled
        self._ids = sampled.token_ids
        self._event: torch.cuda.Event | None = None
        if self._ids.is_cuda:
            self._ids = torch.empty_like(self._ids, device="cpu", pin_memory=True)
            self._ids.copy_(sampled.token_ids, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def result(self) -> StepResult:
        if self._event is not None:
            self._event.synchronize()
        return StepResult(self._ids.tolist(), self._sampled.to_host_logprobs())

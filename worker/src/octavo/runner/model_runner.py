"""Carries out a plan: inputs from rows, the model, the draw, tokens back to the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.batch import BatchPlan, StepHandle, StepResult
from octavo.models.interface import CausalLM
from octavo.outputs import TokenLogprobs
from octavo.runner.batch_tensors import BatchTensors, build_batch_tensors
from octavo.runner.kv_tensors import KVTensors
from octavo.runner.rows import Rows
from octavo.sampling.sampler import SampledTokens, Sampler


class ModelRunner:
    """Runs one model on one device. Not thread-safe: the engine's loop is its only caller."""

    def __init__(self, model: CausalLM, kv: KVTensors, rows: Rows, sampler: Sampler) -> None:
        self._model = model
        self._kv = kv
        self._rows = rows
        self._sampler = sampler

    @torch.inference_mode()
    def execute(self, plan: BatchPlan) -> StepHandle:
        """Start a step; its handle resolves when the device is done."""
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
        if not plan.rows:
            return _Nothing()
        batch = build_batch_tensors(self._rows, plan)
        hidden = self._model.forward(batch.token_ids, self._kv.layers, batch.attention)
        if not batch.sampled_rows:
            return _Nothing()
        if batch.sample_indices is not None:
            hidden = hidden[batch.sample_indices]
        sampled = self._sampler.sample(
            self._model.logits(hidden), batch.sampled_rows, batch.sampled_positions
        )
        self._remember(sampled.token_ids, batch)
        return _Step(sampled)

    def close(self) -> None:
        """Drop the device's memory."""
        del self._model, self._kv, self._rows, self._sampler

    def _remember(self, token_ids: Tensor, batch: BatchTensors) -> None:
        rows = torch.tensor(batch.sampled_rows, dtype=torch.int64, device=token_ids.device)
        self._rows.token_ids[rows, batch.sampled_positions] = token_ids.to(torch.int32)


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
        return StepResult(self._ids.tolist(), self._logprobs())

    def _logprobs(self) -> list[TokenLogprobs | None] | None:
        return self._sampled.to_host_logprobs()

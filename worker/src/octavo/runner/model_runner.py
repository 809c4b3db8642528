"""Carries out a plan: inputs from rows, the model, the draw, tokens back to the rows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.batch import BatchPlan, MaskMemory, StepHandle, StepResult
from octavo.kernels.adapters import Adapters, AdapterUse
from octavo.kernels.upload import upload
from octavo.models.interface import CausalLM
from octavo.runner.batch_tensors import expand, sequence_table
from octavo.runner.cuda_graphs import StepGraphs
from octavo.runner.kv_tensors import KVTensors
from octavo.runner.mask_tensors import MaskTensors
from octavo.runner.prompt_reader import PendingRead, PromptReader
from octavo.runner.rows import Rows
from octavo.runner.step_shapes import StepShape
from octavo.sampling.sampler import DrawKind, SampledTokens, Sampler


def _sizes_up_to(most: int) -> Iterator[int]:
    """Numbers of tokens, closer where each may have a kernel of its own."""
    strides = ((8, 512), (64, 2048), (1024, most))
    size = 0
    for stride, end in strides:
        while size + stride <= min(end, most):
            size += stride
            yield size
    if size < most:
        yield most


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
        self._masks: MaskTensors | None = None
        self._prompts = PromptReader(model, rows)

    @torch.inference_mode()
    def execute(self, plan: BatchPlan) -> StepHandle:
        """Start a step; its handle resolves when the device is done."""
        self._take_over_rows(plan)
        if not plan.rows:
            return _Nothing()
        if self._graphs is not None and not plan.readings:
            kind = DrawKind.LATER if plan.constrained else self._sampler.kind_of(plan.rows)
            shape = self._graphs.shape_for(plan, kind, self._adapter_use(plan))
            if shape is not None:
                return self._replay(self._graphs, plan, shape)
        return self._execute_eagerly(plan)

    @torch.inference_mode()
    def execute_uncaptured(self, plan: BatchPlan) -> StepHandle:
        """The same of a plan with rows, kernel by kernel, whatever is captured: for trials."""
        self._take_over_rows(plan)
        return self._execute_eagerly(plan)

    def mask_memory(self) -> MaskMemory:
        """See :meth:`octavo.batch.Runner.mask_memory`; allocated when first asked for."""
        if self._masks is None:
            rows = self._rows
            self._masks = MaskTensors(len(rows.token_ids), self._model.vocab_size, rows.device)
        return self._masks.memory

    @torch.inference_mode()
    def prepare_next(self) -> bool:
        """Capture one more step ahead of its first use; False when there is nothing to prepare."""
        return self._graphs is not None and self._graphs.prepare_next()

    def run_largest(self) -> None:
        """Run on padding alone the captured steps that need most memory."""
        if self._graphs is not None:
            self._run_padding(self._graphs, self._graphs.shapes.largest())

    def seconds_to_launch(self) -> float:
        """How long the host needs to launch a step that is not captured; 0 if none ever is.

        Not the first time that such a step runs, and only while no step is under way.
        """
        if self._graphs is None:
            return 0.0
        shape = self._graphs.shapes.largest()[0]
        started_s = time.perf_counter()
        self._run_padding(self._graphs, [shape])
        return time.perf_counter() - started_s

    @torch.inference_mode()
    def run_products(self, most_tokens: int, most_draws: int) -> None:
        """Multiply by each kind of matrix as many tokens as a step may have, in small strides.

        Which of its kernels a library takes follows from the number of tokens, and when CUDA first
        loads a kernel it waits for all steps under way: seen to keep the host from planning the
        next for 0.1 s.
        """
        *products, head = self._model.products
        for linear, most in [*((linear, most_tokens) for linear in products), (head, most_draws)]:
            x = self._no_activations(most, linear.in_features)
            for size in _sizes_up_to(most):
                linear(x[:size])

    @torch.inference_mode()
    def run_draws(self) -> None:
        """Draw once, for nobody, by each kernel that any draw may take: those that follow from
        what requests want would else be loaded while others decode."""
        *_, head = self._model.products
        hidden = self._no_activations(1, head.in_features)
        self._sampler.run_covering(self._model.logits(hidden))

    def run_covering(self) -> None:
        """Run on padding alone steps that together run every kernel of captured ones, and every
        kernel of draws."""
        if self._graphs is not None:
            self._run_padding(self._graphs, self._graphs.shapes.covering())
            self.run_draws()

    @torch.inference_mode()
    def _run_padding(self, graphs: StepGraphs, shapes: Iterable[StepShape]) -> None:
        for shape in shapes:
            graphs.run_padding(shape)

    def _no_activations(self, num_tokens: int, size: int) -> Tensor:
        dtype, device = self._model.activation_dtype, self._rows.device
        return torch.zeros(num_tokens, size, dtype=dtype, device=device)

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
        self._sampler.write_admitted()

    def _replay(self, graphs: StepGraphs, plan: BatchPlan, shape: StepShape) -> StepHandle:
        if shape.kind is DrawKind.LATER:
            return self._replay_until_hidden(graphs, plan, shape)
        drawn = graphs.run(plan, shape)
        if all(plan.samples) and shape.place_of(len(plan.rows) - 1, plan) == len(plan.rows) - 1:
            return _Step(SampledTokens(drawn[: len(plan.rows)], None))
        places = [shape.place_of(i, plan) for i, draws in enumerate(plan.samples) if draws]
        return _Step(SampledTokens(drawn, None), places)

    def _replay_until_hidden(
        self, graphs: StepGraphs, plan: BatchPlan, shape: StepShape
    ) -> StepHandle:
        hidden = graphs.run_until_hidden(plan, shape)
        drawing = [index for index, draws in enumerate(plan.samples) if draws]
        if not drawing:
            return _Nothing()
        places, rows, after = upload(
            [
                [shape.place_of(index, plan) for index in drawing],
                [plan.rows[index] for index in drawing],
                [plan.starts[index] + plan.num_tokens[index] for index in drawing],
            ],
            torch.int64,
            hidden.device,
        ).unbind()
        return self._drawn(plan, _Draw(hidden[places], rows, after, drawing))

    def _adapter_use(self, plan: BatchPlan) -> AdapterUse:
        if self._adapters is None:
            return AdapterUse.NONE
        return self._adapters.use_of(self._rows.num_adapters(plan))

    def _execute_eagerly(self, plan: BatchPlan) -> StepHandle:
        table = sequence_table(plan, self._rows.device)
        token_ids, attention, token_row = expand(self._rows, table)
        adapters, use = None, self._adapter_use(plan)
        if self._adapters is not None and use is not AdapterUse.NONE:
            adapters = self._adapters.step(self._rows.adapter_slots[token_row], use)
        # Who reads a prompt wants the hidden states of all its tokens.
        is_last_only = not plan.readings
        hidden = self._model.forward(token_ids, self._kv.layers, attention, adapters, is_last_only)
        drawing = [index for index, draws in enumerate(plan.samples) if draws]
        reads = self._prompts.read(plan, hidden) if plan.readings else []
        if not drawing:
            return _Nothing(reads)
        if not is_last_only:
            hidden = hidden[attention.last_tokens]
        row, after = table.row, table.after
        if len(drawing) < len(plan.rows):
            chosen = upload(drawing, torch.int64, hidden.device)
            hidden, row, after = hidden[chosen], row[chosen], after[chosen]
        return self._drawn(plan, _Draw(hidden, row, after, drawing, reads))

    def _drawn(self, plan: BatchPlan, draw: _Draw) -> StepHandle:
        return _HeldStep(self, plan, draw) if plan.constrained else self.finish(plan, draw)

    @torch.inference_mode()
    def finish(
        self, plan: BatchPlan, draw: _Draw, mask_rows: dict[int, int] | None = None
    ) -> _Step:
        """Draw from a step's hidden states and write the tokens to their rows.

        ``mask_rows``: see :meth:`octavo.batch.StepHandle.draw`.
        """
        masks = None
        if mask_rows:
            assert self._masks is not None, "the masks have been filled"
            chosen = [mask_rows.get(index, -1) for index in draw.drawing]
            masks = (
                self._masks.upload(len(mask_rows)),
                upload(chosen, torch.int32, self._rows.device),
            )
        rows = [plan.rows[index] for index in draw.drawing]
        logits = self._model.logits(draw.hidden)
        sampled = self._sampler.sample(logits, rows, draw.after, self._rows.token_ids, masks)
        self._rows.token_ids[draw.row, draw.after] = sampled.token_ids.to(torch.int32)
        return _Step(sampled, reads=draw.reads)


@dataclass(frozen=True, slots=True)
class _Draw:
    """What a step's draw starts from: one entry for each row that draws."""

    hidden: Tensor
    row: Tensor
    after: Tensor
    """The position of the token to be drawn."""
    drawing: list[int]
    """Their positions in the plan's rows."""
    reads: Sequence[PendingRead] = ()
    """What the step was asked of its prompts."""


class _HeldStep:
    """A step whose draw waits for masks."""

    def __init__(self, runner: ModelRunner, plan: BatchPlan, draw: _Draw) -> None:
        self._runner, self._plan, self._draw = runner, plan, draw
        self._step: _Step | None = None

    def draw(self, mask_rows: dict[int, int]) -> None:
        self._step = self._runner.finish(self._plan, self._draw, mask_rows)

    def result(self) -> StepResult:
        assert self._step is not None, "its draw still waits for masks"
        return self._step.result()


class _Nothing:
    """A step that drew nothing."""

    def __init__(self, reads: Sequence[PendingRead] = ()) -> None:
        self._reads = reads

    def draw(self, mask_rows: dict[int, int]) -> None:
        raise AssertionError("nothing to draw")

    def result(self) -> StepResult:
        return StepResult([], prompts=[read.result() for read in self._reads])


class _Step:
    """A step on its way; on CUDA what it drew comes through pinned copies and an event, as to read
    it from the device itself would wait for the next step, too.

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
        self._event: torch.cuda.Event | None = None
        if sampled.token_ids.is_cuda:
            self._sampled = sampled.on_the_way_to_host()
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def draw(self, mask_rows: dict[int, int]) -> None:
        raise AssertionError("it has drawn")

    def result(self) -> StepResult:
        if self._event is not None:
            self._event.synchronize()
        token_ids = self._sampled.token_ids.tolist()
        if self._chosen is not None:
            token_ids = [token_ids[index] for index in self._chosen]
        prompts = [read.result() for read in self._reads]
        return StepResult(token_ids, self._sampled.to_host_logprobs(), prompts)

"""The largest steps are tried as they may come, and what they hold is put to the right account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.batch import BatchPlan, StepHandle
from octavo.config import SchedulerConfig
from octavo.kernels.interface import Linear, SamplingBatch
from octavo.runner.cuda_graphs import StepGraphs
from octavo.runner.model_runner import ModelRunner
from octavo.runner.step_shapes import StepShape
from octavo.runner.trial_steps import CardUse, try_steps
from octavo.sampling.logit_edits import EditBatch
from tiny_engine import TinyEngine, UncapturedGraphs

LIMITS = SchedulerConfig(
    max_model_len=128,
    max_num_seqs=6,
    max_num_batched_tokens=50,
    max_num_waiting=10,
    block_size=16,
    num_blocks=1,
    enable_prefix_caching=True,
)


class Meter:
    """Memory of 1,000 bytes of weights where building takes 100 and each run peaks as told."""

    total_bytes = 10_000

    def __init__(self, peaks: list[int]) -> None:
        self._peaks = peaks
        self._own = [1000, 1100]

    def own_bytes(self) -> int:
        return self._own.pop(0)

    def free_bytes(self) -> int:
        return 0

    def peak_of(self, run: Callable[[], None]) -> int:
        run()
        return self._peaks.pop(0)


class Watched(ModelRunner):
    """Keeps the plans it carries out."""

    plans: list[BatchPlan]

    def execute_uncaptured(self, plan: BatchPlan) -> StepHandle:
        self.plans.append(plan)
        return super().execute_uncaptured(plan)


class Unused(UncapturedGraphs):
    """Of which trials use none but those on padding: what a step takes eagerly is asked."""

    def run(self, plan: BatchPlan, shape: StepShape) -> Tensor:
        raise AssertionError("a trial step was captured")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyEngine:
    return TinyEngine(tmp_path_factory.mktemp("tiny"))


def tried(
    tiny: TinyEngine, limits: SchedulerConfig, graphs: type[StepGraphs] | None, peaks: list[int]
) -> tuple[CardUse, list[BatchPlan]]:
    """What a trial finds, and the plans that it carries out."""
    plans: list[BatchPlan] = []

    def make_runner() -> ModelRunner:
        runner = tiny.runner(limits, graphs)
        runner.__class__ = Watched
        runner.plans = plans  # type: ignore[attr-defined]
        return runner

    return try_steps(make_runner, limits, Meter(peaks)), plans


def test_the_largest_steps_run_and_their_memory_is_told_apart(tiny: TinyEngine) -> None:
    use, plans = tried(tiny, LIMITS, Unused, [1700, 4100])
    assert (use.weights_bytes, use.graphs_bytes, use.step_bytes) == (1000, 600, 3100)
    assert use.us_per_token > 0
    steps = [plan for plan in plans if plan.rows]
    assert len(steps) == 3  # one for its memory, one for its time, one of every wish
    for plan in steps[:2]:
        assert plan.total_tokens == 50
        assert len(plan.rows) == 6
        assert all(plan.samples)


def test_every_wish_is_tried_once(tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no kernel that only it needs is loaded while others decode."""
    applied: list[EditBatch] = []
    apply = EditBatch.apply

    def watched(edits: EditBatch, *rest: Any) -> None:
        applied.append(edits)
        apply(edits, *rest)

    monkeypatch.setattr(EditBatch, "apply", watched)
    _, plans = tried(tiny, LIMITS, Unused, [1700, 4100])
    (edits,) = applied
    assert edits.allowed is not None
    assert edits.bad_words is not None
    for tensor in (edits.biases, edits.barred_ids, edits.allowed, edits.bad_words.prefixes):
        assert tensor.numel()
    (plan,) = (plan for plan in plans if plan.readings)
    assert plan.admissions[0].params.logprobs
    assert plan.admissions[0].params.has_penalty
    (reading,) = plan.readings
    assert reading.num_scored
    assert reading.num_top
    assert reading.pooling is not None


def test_a_short_context_bounds_the_trial(tiny: TinyEngine) -> None:
    limits = replace(LIMITS, max_model_len=2)
    _, plans = tried(tiny, limits, None, [1100, 1100])
    assert plans[0].num_tokens == [1] * 6
    assert plans[0].num_decodes == 6


def test_products_are_tried_with_every_stride_of_tokens(
    tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: dict[int, list[int]] = {}

    class Counted:
        def __init__(self, index: int, linear: Linear) -> None:
            self.in_features = linear.in_features
            self._index, self._linear = index, linear

        def __call__(self, x: Tensor) -> Tensor:
            tried.setdefault(self._index, []).append(x.shape[0])
            return self._linear(x)

    counted = [Counted(index, linear) for index, linear in enumerate(tiny.model.products)]
    monkeypatch.setattr(type(tiny.model), "products", counted)
    tiny.runner(LIMITS, None).run_products(700, 20)
    *products, head = tried.values()
    assert head == [8, 16, 20]
    assert len(products) == 4
    for sizes in products:
        assert sizes == [*range(8, 513, 8), 576, 640, 700]


def test_draws_of_every_kind_are_tried_from_what_a_model_gives_and_from_float32(
    tiny: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny.model), "activation_dtype", torch.bfloat16)
    drawn: list[tuple[torch.dtype, bool, bool]] = []
    sample = tiny.kernels.sample

    def watched(logits: Tensor, batch: SamplingBatch) -> Tensor:
        drawn.append((logits.dtype, batch.all_greedy, batch.any_filter))
        return sample(logits, batch)

    monkeypatch.setattr(tiny.kernels, "sample", watched)
    tiny.runner(LIMITS, None).run_draws()
    kinds = [(True, False), (False, False), (False, True)]
    assert drawn == [(dtype, *kind) for dtype in (torch.bfloat16, torch.float32) for kind in kinds]


def test_a_kv_cache_of_eight_bits_is_not_what_products_and_draws_are_tried_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, dtypes = TinyEngine(tmp_path), set[torch.dtype]()
    tiny.dtype = torch.float8_e4m3fn
    logits_of = tiny.model.logits

    def watched(hidden: Tensor) -> Tensor:
        dtypes.add(hidden.dtype)
        return logits_of(hidden)

    monkeypatch.setattr(tiny.model, "logits", watched)
    runner = tiny.runner(LIMITS, None)
    runner.run_products(8, 8)
    runner.run_draws()
    assert dtypes == {torch.float32}

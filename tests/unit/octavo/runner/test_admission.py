"""What the device is sent when a request takes over a row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.batch import BatchPlan, RowAdmission
from octavo.config import SchedulerConfig
from octavo.kernels.reference import ReferenceKernels
from octavo.runner.model_runner import ModelRunner
from octavo.runner.rows import Rows
from octavo.runner.step_shapes import StepShape
from octavo.sampling.sampler import DrawKind, Sampler
from octavo.sampling_params import SamplingParams
from tiny_engine import TinyEngine, UncapturedGraphs

LIMITS = SchedulerConfig(
    max_model_len=128,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    max_num_waiting=10,
    block_size=16,
    num_blocks=32,
    enable_prefix_caching=True,
)
PROMPT = list(range(1, 50))
ONE_TRANSFER = {"to": 1, "cumsum": 1, "scatter_": 1}


class NothingCaptured(UncapturedGraphs):
    """Replays do nothing, so that what is left is the host's work."""

    def step(self, shape: StepShape) -> None:
        pass


class Operations(TorchDispatchMode):
    """Counts what is more than another look at the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in ("select", "slice", "split_with_sizes", "view"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def runner(tmp_path: Path) -> ModelRunner:
    return TinyEngine(tmp_path).runner(LIMITS, NothingCaptured)


def admission(row: int, num_cached: int = 0, num_drawn: int = 0) -> RowAdmission:
    return RowAdmission(
        row=row,
        token_ids=[*PROMPT, *[7] * num_drawn],
        num_prompt_tokens=len(PROMPT),
        num_cached_tokens=num_cached,
        params=SamplingParams(temperature=0.5, top_p=0.25, min_p=0.125, top_k=9),
        seed=2**64 - 3,
        stop_token_ids=frozenset(),
        block_ids=[5, 6, 7, 8],
    )


def test_a_prompts_step_is_four_transfers_and_nothing_else(runner: ModelRunner) -> None:
    """Its tokens, its blocks, its sampling parameters, the step's table."""
    plan = BatchPlan(
        admissions=[admission(1)], rows=[1], starts=[0], num_tokens=[len(PROMPT)], samples=[True]
    )
    runner.execute(plan)  # the first of its shape runs twice
    with Operations() as operations:
        runner.execute(plan)
    # UncapturedGraphs clones what was drawn.
    assert operations.counts == {"copy_": 4, "clone": 1}


@pytest.mark.parametrize(
    ("num_admissions", "num_tokens", "expected"),
    [
        (2, 3, {"copy_": 4}),
        (3, 3, ONE_TRANSFER),
        (64, 3, ONE_TRANSFER),
        (8, 2000, {"copy_": 16}),
        (64, 2000, {"copy_": 128}),
    ],
)
def test_many_short_prompts_are_sent_together_and_long_ones_straight(
    num_admissions: int, num_tokens: int, expected: dict[str, int]
) -> None:
    """Many of them cost the host as many operations as three do."""
    token_ids = torch.arange(num_admissions * num_tokens).view(num_admissions, num_tokens)
    rows = Rows(num_admissions, num_tokens, 16, torch.device("cpu"))
    admissions = [
        msgspec.structs.replace(admission(row), token_ids=token_ids[row].tolist(), block_ids=[row])
        for row in range(num_admissions)
    ]
    with torch.inference_mode(), Operations() as operations:
        rows.apply(BatchPlan(admissions=admissions))
    assert operations.counts == expected
    assert torch.equal(rows.token_ids[:, :num_tokens], token_ids.int())
    assert rows.block_tables[:, 0].tolist() == list(range(num_admissions))


def test_adapters_go_with_the_rest_of_an_admission() -> None:
    rows = Rows(64, 100, 16, torch.device("cpu"))
    adapted = [msgspec.structs.replace(admission(row), adapter_slot=row) for row in range(64)]
    with torch.inference_mode(), Operations() as operations:
        rows.apply(BatchPlan(admissions=adapted))
    assert operations.counts == ONE_TRANSFER
    assert rows.adapter_slots.tolist() == list(range(64))


@pytest.mark.parametrize(
    ("num_admissions", "expected"),
    [(1, {"copy_": 1}), (4, {"copy_": 4}), (5, ONE_TRANSFER), (64, ONE_TRANSFER)],
)
def test_sampling_parameters_of_many_admissions_are_sent_together(
    num_admissions: int, expected: dict[str, int]
) -> None:
    device = torch.device("cpu")
    sampler = Sampler(ReferenceKernels(), 100, 64, device)
    rows = [63 - 3 * index % 64 for index in range(num_admissions)]
    params = [
        SamplingParams(temperature=1 + row / 64, top_p=0.5 + row / 256, min_p=row / 128, top_k=row)
        for row in rows
    ]
    seeds = [(row * 0x9E3779B97F4A7C15 + 2**63) % 2**64 for row in rows]
    for row, one, seed in zip(rows, params, seeds, strict=True):
        sampler.admit(row, one, seed, PROMPT, [], frozenset())
    with torch.inference_mode(), Operations() as operations:
        sampler.write_admitted()
    assert operations.counts == expected
    drawn = sampler.gather(torch.tensor(rows), torch.zeros(len(rows)), DrawKind.FILTERED)
    assert drawn.temperature.tolist() == [one.temperature for one in params]
    assert drawn.top_p.tolist() == [one.top_p for one in params]
    assert drawn.min_p.tolist() == [one.min_p for one in params]
    assert drawn.top_k.tolist() == rows
    assert [seed % 2**64 for seed in drawn.seeds.tolist()] == seeds


@pytest.mark.parametrize(
    "excess", [{"token_ids": [1] * 102}, {"block_ids": [1] * 8}], ids=["tokens", "blocks"]
)
def test_an_admission_never_reaches_into_the_next_row(excess: dict[str, list[int]]) -> None:
    rows = Rows(2, 100, 16, torch.device("cpu"))
    with pytest.raises(AssertionError, match="would reach the next row"):
        rows.apply(BatchPlan(admissions=[msgspec.structs.replace(admission(0), **excess)]))


def test_a_row_holds_what_its_request_needs_on_the_device(runner: ModelRunner) -> None:
    rows, sampler = runner._rows, runner._sampler
    runner.execute(BatchPlan(admissions=[admission(2)]))
    rows.token_ids.fill_(99)
    runner.execute(BatchPlan(admissions=[admission(2, num_cached=32, num_drawn=3)]))
    assert rows.token_ids[2].tolist() == [*[99] * 32, *PROMPT[32:], 7, 7, 7, *[99] * 77]
    assert rows.block_tables[2, :4].tolist() == [5, 6, 7, 8]
    one = sampler.gather(torch.tensor([2]), torch.tensor([0]), DrawKind.FILTERED)
    assert [one.temperature.item(), one.top_p.item(), one.min_p.item()] == [0.5, 0.25, 0.125]
    assert [one.top_k.item(), one.seeds.item()] == [9, -3]


def test_blocks_added_to_running_rows_are_appended(runner: ModelRunner) -> None:
    runner.execute(BatchPlan(admissions=[admission(0), admission(3)]))
    runner.execute(BatchPlan(new_blocks=[(0, 4, [11]), (3, 4, [12, 13])]))
    tables = runner._rows.block_tables
    assert tables[0, :6].tolist() == [5, 6, 7, 8, 11, 0]
    assert tables[3, :6].tolist() == [5, 6, 7, 8, 12, 13]

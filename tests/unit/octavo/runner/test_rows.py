"""What the device remembers of each request, against lists written one number at a time."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.batch import BatchPlan, RowAdmission
from octavo.kernels.adapters import NO_ADAPTER
from octavo.runner.rows import Rows
from octavo.sampling_params import SamplingParams

NUM_ROWS, MAX_LEN, BLOCK_SIZE = 12, 40, 8
MAX_BLOCKS = MAX_LEN // BLOCK_SIZE
NUMBERS = st.integers(0, 2**31 - 1)


class PlainRows:
    """The reference."""

    def __init__(self) -> None:
        self.token_ids = [[0] * (MAX_LEN + 1) for _ in range(NUM_ROWS)]
        self.block_tables = [[0] * MAX_BLOCKS for _ in range(NUM_ROWS)]
        self.adapter_slots = [NO_ADAPTER] * NUM_ROWS

    def apply(self, plan: BatchPlan) -> None:
        for one in plan.admissions:
            for at, token_id in enumerate(one.token_ids):
                if at >= min(one.num_cached_tokens, one.num_prompt_tokens):
                    self.token_ids[one.row][at] = token_id
            for at, block_id in enumerate(one.block_ids):
                self.block_tables[one.row][at] = block_id
            slot = one.adapter_slot
            self.adapter_slots[one.row] = NO_ADAPTER if slot is None else slot
        for row, first, block_ids in plan.new_blocks:
            for at, block_id in enumerate(block_ids, start=first):
                self.block_tables[row][at] = block_id


@st.composite
def admissions(draw: st.DrawFn, row: int) -> RowAdmission:
    token_ids = draw(st.lists(NUMBERS, min_size=1, max_size=MAX_LEN + 1))
    return RowAdmission(
        row=row,
        token_ids=token_ids,
        num_prompt_tokens=draw(st.integers(1, len(token_ids))),
        num_cached_tokens=draw(st.integers(0, len(token_ids))),
        params=SamplingParams(),
        seed=0,
        stop_token_ids=frozenset(),
        block_ids=draw(st.lists(NUMBERS, max_size=MAX_BLOCKS)),
        adapter_slot=draw(st.none() | st.integers(0, 3)),
    )


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    """Any rows admitted, from none to all; of the others some that get blocks."""
    rows = draw(st.permutations(range(NUM_ROWS)))
    num_admitted = draw(st.integers(0, NUM_ROWS))
    new_blocks = []
    for row in rows[num_admitted : num_admitted + draw(st.integers(0, 3))]:
        first = draw(st.integers(0, MAX_BLOCKS - 1))
        ids = draw(st.lists(NUMBERS, min_size=1, max_size=MAX_BLOCKS - first))
        new_blocks.append((row, first, ids))
    return BatchPlan(
        admissions=[draw(admissions(row)) for row in rows[:num_admitted]], new_blocks=new_blocks
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(plans(), min_size=1, max_size=3))
def test_rows_hold_what_plans_say_and_nothing_else_changes(steps: list[BatchPlan]) -> None:
    rows, plain = Rows(NUM_ROWS, MAX_LEN, BLOCK_SIZE, torch.device("cpu")), PlainRows()
    for plan in steps:
        rows.apply(plan)
        plain.apply(plan)
        assert rows.token_ids.tolist() == plain.token_ids
        assert rows.block_tables.tolist() == plain.block_tables
        assert rows.adapter_slots.tolist() == plain.adapter_slots

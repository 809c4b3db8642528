"""When a step counts as one that uses few of the slots."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.adapters import AdapterStack, AdapterUse, Projection
from octavo.kernels.triton import TritonKernels
from octavo.kernels.triton.adapters import TritonAdapters

NONE, FEW, MANY = AdapterUse


@pytest.mark.parametrize(
    ("num_slots", "max_rank", "by_used"),
    [
        (8, 16, {0: NONE, 1: MANY, 8: MANY}),
        (31, 16, {0: NONE, 1: MANY, 31: MANY}),
        (64, 16, {0: NONE, 1: FEW, 8: FEW, 9: MANY, 64: MANY}),
        (8, 100, {1: FEW, 2: FEW, 3: MANY, 8: MANY}),
        (3, 256, {1: MANY, 3: MANY}),
    ],
)
def test_few_adapters_of_many(
    num_slots: int, max_rank: int, by_used: dict[int, AdapterUse]
) -> None:
    projection = Projection(0, ("q",), 16, (16,))
    device = torch.device("cpu")
    stack = AdapterStack.allocate([projection], num_slots, max_rank, torch.float32, device)
    adapters = TritonAdapters(stack, TritonKernels(device))
    assert {used: adapters.use_of(used) for used in by_used} == by_used
    assert list(adapters.uses) == list(
        dict.fromkeys(use for use in by_used.values() if use is not NONE)
    )

"""Decodes are put in an order for the programs that read their caches."""

from __future__ import annotations

import pytest
import torch

from octavo.runner.batch_tensors import longest_first


@pytest.mark.parametrize("count", [1, 2, 33, 256])
def test_the_longest_come_first_and_none_is_lost(count: int) -> None:
    lengths = torch.randint(0, 40, (count,))  # some are equal, and padding has none
    order = longest_first(lengths)
    assert sorted(order.tolist()) == list(range(count))
    assert lengths[order].tolist() == sorted(lengths.tolist(), reverse=True)

"""Random weights that are of use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.kernels.reference import ReferenceKernels
from octavo.loading.dummy_source import DummySource
from octavo.models import registry
from paged_sequences import PagedSequences
from tiny_models import FAMILIES, tiny_config

CPU = torch.device("cpu")


def matrix(source: DummySource, name: str, shape: tuple[int, int]) -> Tensor:
    made = source.matrix(name, shape)
    assert isinstance(made, Tensor)
    return made


def test_tensor_depends_on_seed_and_name_alone() -> None:
    first, second = DummySource(CPU, torch.float32), DummySource(CPU, torch.float32)
    second.matrix("other", (4, 4))
    assert torch.equal(matrix(first, "a", (64, 48)), matrix(second, "a", (64, 48)))
    assert not torch.equal(matrix(first, "a", (64, 48)), matrix(first, "b", (64, 48)))
    other_seed = DummySource(CPU, torch.float32, seed=1)
    assert not torch.equal(matrix(first, "a", (64, 48)), matrix(other_seed, "a", (64, 48)))


def test_matrix_larger_than_the_pool_has_no_equal_rows() -> None:
    made = matrix(DummySource(CPU, torch.bfloat16), "a", (1100, 8192))
    assert made.dtype is torch.bfloat16
    assert len(torch.unique(made[:, :8], dim=0)) > 1090
    assert abs(made.float().std().item() * 8192**0.5 - 1) < 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_deep_model_stays_finite(family: str) -> None:
    config = tiny_config(family, num_hidden_layers=40)
    resolved = registry.resolve(config)
    source = DummySource(CPU, torch.float32)
    model = resolved.build(source, ReferenceKernels(), torch.float32, CPU, 16)
    source.check_all_used(resolved.can_ignore)
    logits = PagedSequences(model).step({"a": [1, 2, 3], "b": [7]})
    for row in logits.values():
        assert row.isfinite().all()
        assert 1e-3 < row.std() < 1e3

"""What adapters add against the plain torch twin."""

from __future__ import annotations

import pytest
import torch

from adapter_parity import projections, random_stack
from kernel_parity import Trial
from octavo.kernels.adapters import TorchAdapters
from octavo.kernels.cpu import CpuKernels
from octavo.kernels.reference import ReferenceKernels
from octavo.kernels.select import select_adapters


@pytest.mark.parametrize(
    ("slots", "ranks", "in_features"),
    [
        pytest.param([0], [4], 72, id="one-token"),
        pytest.param([-1, -1], [4], 72, id="none"),
        pytest.param([2, -1, 0, 0, 3, 2, -1, 2], [16, None, 1, 9], 72, id="mixed"),
        pytest.param([3, 1, 0, -1, 2, 3], [8, 40, 100, 256], 7, id="ranks"),
        pytest.param([index % 3 - 1 for index in range(70)], [16, 33], 640, id="many"),
    ],
)
def test_every_product_of_a_layer_equals_the_twin(
    kernels: CpuKernels,
    num_threads: int,
    slots: list[int],
    ranks: list[int | None],
    in_features: int,
) -> None:
    torch.manual_seed(0)
    trial = Trial(torch.device("cpu"), torch.float32, seed=0)
    shapes = projections(in_features)
    stack = random_stack(trial, shapes, ranks, max(rank or 0 for rank in ranks))
    chosen = trial.ints(slots)
    actual = select_adapters(kernels, stack).step(chosen)
    expected = TorchAdapters(stack, ReferenceKernels()).step(chosen)
    some = torch.arange(len(slots) - 1, -1, -2)
    for index, projection in enumerate(shapes):
        weights = torch.randn(sum(projection.out_features), projection.in_features)
        linear = kernels.prepare_linear([weights], None, torch.float32)
        # Rows of a wider tensor: their stride is not their length.
        x = torch.randn(len(slots), projection.in_features + 8)[:, : projection.in_features]
        part = (actual.of(some), expected.of(some), x[some])
        for ours, twin, rows in ((actual, expected, x), part):
            trial.assert_close(
                ours.project(index, linear, rows), twin.project(index, linear, rows), atol=1e-4
            )
            if len(projection.names) == 2:
                gated = ours.project_gated(index, linear, rows, is_silu=True)
                trial.assert_close(
                    gated, twin.project_gated(index, linear, rows, is_silu=True), atol=1e-3
                )

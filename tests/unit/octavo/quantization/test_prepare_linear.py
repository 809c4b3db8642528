"""Which parts reach the kernels packed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from octavo import quantization
from octavo.kernels.interface import GGMLType, Linear, PackedTensor, WeightPart
from octavo.kernels.reference import ReferenceKernels
from octavo.quantization import dequantize


class RecordingKernels(ReferenceKernels):
    """Remembers the parts it was given."""

    def __init__(self, packed_kinds: frozenset[GGMLType]) -> None:
        super().__init__()
        self.packed_kinds = packed_kinds
        self.parts: list[WeightPart] = []

    def prepare_linear(
        self, parts: Sequence[WeightPart], bias: Tensor | None, dtype: torch.dtype
    ) -> Linear:
        self.parts = list(parts)
        return super().prepare_linear([torch.zeros(1, 32)], None, dtype)


@pytest.fixture
def q8_0() -> PackedTensor:
    blocks = torch.zeros(4, 34, dtype=torch.uint8)
    blocks[:, 1] = 0x3C  # the float16 1.0
    blocks[:, 2:] = torch.arange(32, dtype=torch.uint8)
    return PackedTensor(blocks, GGMLType.Q8_0, 32)


def test_kind_the_kernels_know_stays_packed(q8_0: PackedTensor) -> None:
    dense = torch.ones(2, 32)
    kernels = RecordingKernels(frozenset({GGMLType.Q8_0}))
    quantization.prepare_linear(kernels, [q8_0, dense], None, torch.float32)
    assert kernels.parts[0] is q8_0
    assert kernels.parts[1] is dense


def test_other_kinds_arrive_decoded(q8_0: PackedTensor) -> None:
    kernels = RecordingKernels(frozenset({GGMLType.Q4_0}))
    quantization.prepare_linear(kernels, [q8_0], None, torch.bfloat16)
    (part,) = kernels.parts
    assert isinstance(part, Tensor)
    assert part.dtype is torch.bfloat16
    assert torch.equal(part, dequantize(q8_0, torch.bfloat16))


def test_reference_kernels_multiply_by_packed_weights(q8_0: PackedTensor) -> None:
    linear = quantization.prepare_linear(
        ReferenceKernels(), [q8_0, torch.ones(1, 32)], torch.full((5,), 0.5), torch.float32
    )
    expected = [sum(range(32)) + 0.5] * 4 + [32.5]
    assert linear(torch.ones(1, 32)).tolist() == [expected]

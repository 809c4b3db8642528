"""Products over panels against torch's over the dequantised matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.errors import WeightError
from octavo.kernels.cpu import CpuKernels
from octavo.kernels.interface import GGMLType, Linear, PackedTensor, WeightPart
from random_gguf_blocks import QUANTISED_KINDS, block_columns, random_blocks

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def expected_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    wide = None if bias is None else bias.double()
    return torch.nn.functional.linear(x.double(), weight.double(), wide).float()


def assert_product(linear: Linear, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Within 1e-5 of what the absolute values of all terms add up to."""
    y = linear(x)
    expected = expected_product(x, weight, bias)
    assert y.dtype == torch.float32
    assert y.shape == expected.shape
    assert y.is_contiguous()
    magnitude = expected_product(x.abs(), weight.abs(), None if bias is None else bias.abs())
    assert ((y - expected).abs() <= 1e-5 * magnitude + 1e-7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_outputs", "num_inputs"), [(96, 64), (45, 33), (7, 100), (1, 1), (70, 1601)]
)
def test_dense_product_equals_torch(
    kernels: CpuKernels, num_threads: int, num_outputs: int, num_inputs: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(num_outputs)
    weight = torch.randn(num_outputs, num_inputs)
    bias = torch.randn(num_outputs)
    linear = kernels.prepare_linear([weight], bias, dtype)
    assert (linear.in_features, linear.out_features) == (num_inputs, num_outputs)
    for num_rows in [1, 2, 3, 14, 15, 29, 70]:
        assert_product(linear, torch.randn(num_rows, num_inputs), weight.to(dtype).float(), bias)


@pytest.mark.parametrize("kind", QUANTISED_KINDS)
def test_packed_product_equals_that_of_the_dequantised_matrix(
    kernels: CpuKernels, num_threads: int, kind: GGMLType
) -> None:
    num_columns = 3 * 256
    packed, weight = random_blocks(kind, 75, num_columns, seed=1)
    linear = kernels.prepare_linear([packed], None, torch.float32)
    torch.manual_seed(1)
    for num_rows in [1, 2, 5, 17, 32]:
        assert_product(linear, torch.randn(num_rows, num_columns), weight)


@pytest.mark.parametrize("num_rows", range(1, 71))
def test_every_row_count_is_multiplied(num_rows: int) -> None:
    torch.manual_seed(num_rows)
    weight, x = torch.randn(40, 48), torch.randn(num_rows, 48)
    kernels = CpuKernels()
    assert_product(kernels.prepare_linear([weight], None, torch.float32), x, weight)


def test_more_rows_than_a_cache_block_holds(kernels: CpuKernels, num_threads: int) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(64, 1700), torch.randn(400, 1700)
    assert_product(kernels.prepare_linear([weight], None, torch.float32), x, weight)


def test_rows_are_shared_out_when_panels_are_fewer_than_threads() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(20, 1000), torch.randn(70, 1000)
    linear = CpuKernels().prepare_linear([weight], None, torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        assert_product(linear, x, weight)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", QUANTISED_KINDS)
def test_rows_of_packed_weights_are_exactly_the_dequantised_ones(
    kernels: CpuKernels, kind: GGMLType
) -> None:
    packed, weight = random_blocks(kind, 40, 2 * block_columns(kind), seed=2)
    linear = kernels.prepare_linear([packed], None, torch.float32)
    ids = torch.tensor([39, 0, 31, 32, 32, 15, 16], dtype=torch.int32)
    torch.testing.assert_close(linear.rows(ids), weight[ids.long()], atol=0, rtol=2e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64], ids=str)
def test_rows_of_dense_weights_are_the_stored_ones(
    kernels: CpuKernels, num_threads: int, dtype: torch.dtype, id_dtype: torch.dtype
) -> None:
    weight = torch.randn(45, 300)
    linear = kernels.prepare_linear([weight], None, dtype)
    ids = torch.randint(45, (500,)).to(id_dtype)
    assert torch.equal(linear.rows(ids), weight.to(dtype).float()[ids.long()])


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("kept", DTYPES, ids=str)
def test_weights_are_converted_as_torch_does(stored: torch.dtype, kept: torch.dtype) -> None:
    values = [
        0.0,
        -0.0,
        1.0,
        -2.5,
        65504.0,
        65519.0,
        65520.0,
        1e6,
        6e-8,
        3e-8,
        2.9e-8,
        1e-40,
        1 / 3,
    ]
    weight = torch.tensor([values, [-value for value in values]]).to(stored)
    linear = CpuKernels().prepare_linear([weight], None, kept)
    assert torch.equal(linear.rows(torch.tensor([0, 1])), weight.to(kept).float())


def test_dense_encodings_of_gguf_are_read_as_they_lie() -> None:
    weight = torch.randn(33, 64)
    kinds = [
        (GGMLType.F32, torch.float32),
        (GGMLType.F16, torch.float16),
        (GGMLType.BF16, torch.bfloat16),
    ]
    for kind, dtype in kinds:
        stored = weight.to(dtype)
        part = PackedTensor(stored.view(torch.uint8), kind, 64)
        linear = CpuKernels().prepare_linear([part], None, torch.float32)
        assert torch.equal(linear.rows(torch.arange(33)), stored.float())


@pytest.mark.parametrize(
    "kinds",
    [
        (GGMLType.Q4_1, GGMLType.Q4_1, GGMLType.Q4_1),
        (GGMLType.Q4_K, GGMLType.Q4_K, GGMLType.Q6_K),
        (GGMLType.Q5_0, GGMLType.Q8_0, None),
        (None, GGMLType.Q4_0, None),
    ],
    ids=["one encoding", "two encodings", "encodings of one format", "dense between"],
)
def test_merged_parts_of_any_encoding_give_their_outputs_in_order(
    kernels: CpuKernels, num_threads: int, kinds: tuple[GGMLType | None, ...]
) -> None:
    torch.manual_seed(3)
    parts: list[WeightPart] = []
    weights: list[Tensor] = []
    for index, (kind, num_outputs) in enumerate(zip(kinds, (41, 70, 5), strict=True)):
        if kind is None:
            dense = torch.randn(num_outputs, 256)
            parts.append(dense)
        else:
            packed, dense = random_blocks(kind, num_outputs, 256, seed=index)
            parts.append(packed)
        weights.append(dense)
    weight, bias = torch.cat(weights), torch.randn(116)
    linear = kernels.prepare_linear(parts, bias, torch.float32)
    for num_rows in [1, 9, 33]:
        assert_product(linear, torch.randn(num_rows, 256), weight, bias)
    ids = torch.tensor([0, 40, 41, 110, 111, 115])
    torch.testing.assert_close(linear.rows(ids), weight[ids], atol=0, rtol=2e-7)


def test_packed_weights_take_no_more_memory_than_their_file() -> None:
    packed, _ = random_blocks(GGMLType.Q4_1, 96, 512, seed=0)
    linear = CpuKernels().prepare_linear([packed], None, torch.float32)
    assert linear.size_bytes == packed.blocks.numel()


def test_no_rows_give_no_rows(kernels: CpuKernels) -> None:
    linear = kernels.prepare_linear([torch.randn(40, 64)], None, torch.float32)
    assert linear(torch.empty(0, 64)).shape == (0, 40)
    assert linear.rows(torch.empty(0, dtype=torch.int64)).shape == (0, 64)


def test_parts_with_different_inputs_are_refused() -> None:
    with pytest.raises(WeightError, match="inputs differ"):
        CpuKernels().prepare_linear([torch.randn(4, 8), torch.randn(4, 9)], None, torch.float32)


def test_damaged_packed_rows_are_refused() -> None:
    part = PackedTensor(torch.zeros(4, 19, dtype=torch.uint8), GGMLType.Q4_1, 32)
    with pytest.raises(WeightError, match="takes 20 bytes"):
        CpuKernels().prepare_linear([part], None, torch.float32)


def test_unknown_storage_is_refused() -> None:
    with pytest.raises(WeightError, match="float32, bfloat16 or float16"):
        CpuKernels().prepare_linear([torch.randn(4, 8)], None, torch.int8)

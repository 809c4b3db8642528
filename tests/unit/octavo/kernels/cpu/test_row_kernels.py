"""Norms, activations and rotary embedding against the reference."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.cpu import CpuKernels
from octavo.kernels.interface import AttentionBatch
from octavo.kernels.reference import ReferenceKernels

REFERENCE = ReferenceKernels()
SHAPES = [(1, 576), (3, 64), (5, 33), (2, 1000), (1, 7), (130, 576)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm_equals_the_reference(
    kernels: CpuKernels, num_threads: int, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(shape[1])
    expected = REFERENCE.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5), expected, atol=1e-6, rtol=1e-5)


def test_rms_norm_takes_any_number_of_dimensions(kernels: CpuKernels) -> None:
    x, weight = torch.randn(3, 4, 48), torch.randn(48)
    expected = REFERENCE.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_rms_norm_adds_in_place_and_norms_the_sum(
    kernels: CpuKernels, num_threads: int, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x, residual, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[1])
    total = x + residual
    y = kernels.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    expected = REFERENCE.rms_norm(total, weight, 1e-5)
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gated_activations_equal_the_reference(
    kernels: CpuKernels, num_threads: int, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    gate_up = 4 * torch.randn(shape[0], 2 * shape[1])
    gate_up[0, :5] = torch.tensor([90.0, -90.0, 1e4, -1e4, 0.0])
    for name in ["silu_mul", "gelu_tanh_mul"]:
        expected = getattr(REFERENCE, name)(gate_up)
        actual = getattr(kernels, name)(gate_up)
        # Torch's own 1 + tanh(u) cancels to an error of 1e-7 times x where it is nearly 0.
        torch.testing.assert_close(actual, expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("has_norm", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(
    ("heads", "head_dim", "rotary_dim", "block_size", "num_tokens"),
    [
        ((9, 3), 64, 64, 16, 5),
        ((2, 1), 80, 32, 8, 1),
        ((3, 3), 20, 20, 32, 40),
        ((16, 1), 128, 128, 16, 33),
        ((4, 2), 256, 64, 16, 7),
        ((1, 1), 6, 4, 8, 3),
    ],
)
def test_rope_and_cache_equals_the_reference(
    kernels: CpuKernels,
    num_threads: int,
    heads: tuple[int, int],
    head_dim: int,
    rotary_dim: int,
    block_size: int,
    num_tokens: int,
    has_norm: bool,
) -> None:
    torch.manual_seed(head_dim)
    num_heads, num_kv_heads = heads
    qkv = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    angles = torch.randn(50, rotary_dim)
    norm = torch.randn(head_dim) if has_norm else None
    num_blocks = num_tokens
    slots = torch.randperm(num_blocks * block_size)[:num_tokens].int()
    slots[1::3] = -1
    batch = AttentionBatch(
        query_starts=torch.tensor([0, num_tokens], dtype=torch.int32),
        context_lens=torch.tensor([num_tokens], dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        positions=torch.randint(50, (num_tokens,)).int(),
        slots=slots,
        num_decodes=0,
        max_query_len=num_tokens,
        max_context_len=num_tokens,
    )
    # Keys and values of a block beside each other: a block's stride is not its size.
    cache = torch.randn(num_blocks, 2, num_kv_heads, block_size, head_dim)
    expected_cache = cache.clone()
    expected = REFERENCE.rope_and_cache(
        qkv.clone(), angles, expected_cache[:, 0], expected_cache[:, 1], batch, num_heads,
        norm, norm, 1e-6,
    )  # fmt: skip
    q = kernels.rope_and_cache(
        qkv, angles, cache[:, 0], cache[:, 1], batch, num_heads, norm, norm, 1e-6
    )
    torch.testing.assert_close(q, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache, expected_cache, atol=1e-5, rtol=1e-5)

"""Paged attention against the reference, over caches that hold NaN wherever nobody may look."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernel_parity import (
    ATTENTION_SHAPES,
    AttentionShape,
    Trial,
    attention_batch,
    paged_cache,
    poisoned_memory,
)
from octavo.errors import ConfigError
from octavo.kernels.cpu import CpuKernels
from octavo.kernels.reference import ReferenceKernels

REFERENCE = ReferenceKernels()
MORE_SHAPES = {
    "decode-head20": AttentionShape(((0, 1), (40, 1)), 2, head_dim=20),
    "decode-head7": AttentionShape(((0, 1), (40, 1)), 2, head_dim=7),
    "prefill-head20": AttentionShape(((0, 40), (33, 9)), 0, head_dim=20),
    "prefill-head7": AttentionShape(((0, 40), (33, 9)), 0, head_dim=7),
    "prefill-head320": AttentionShape(((5, 3), (0, 9)), 0, head_dim=320),
    "decode-head320": AttentionShape(((50, 1), (0, 1)), 2, head_dim=320),
    "decode-group40": AttentionShape(((50, 1), (0, 1)), 2, group_size=40, num_kv_heads=1),
    "prefill-group130": AttentionShape(((5, 3),), 0, group_size=130, num_kv_heads=1, head_dim=16),
    "decode-long": AttentionShape(((1500, 1), (3, 1), (700, 1)), 3, num_kv_heads=1),
    "decode-one-long": AttentionShape(((2000, 1),), 1, num_kv_heads=3, group_size=3),
    "prefill-long": AttentionShape(((0, 300), (260, 140)), 0, num_kv_heads=1, group_size=3),
    "prefill-long-window": AttentionShape(((0, 300), (260, 140)), 0, num_kv_heads=1, window=100),
}
SHAPES = {**ATTENTION_SHAPES, **MORE_SHAPES}


def assert_parity(kernels: CpuKernels, shape: AttentionShape) -> None:
    torch.manual_seed(0)
    trial = Trial(torch.device("cpu"), torch.float32, 0)
    batch, num_blocks = attention_batch(trial, shape)
    keys, values = paged_cache(trial, shape, batch, num_blocks)
    num_heads = shape.group_size * shape.num_kv_heads
    q = torch.randn(int(batch.query_starts[-1]), num_heads, shape.head_dim)
    expected = REFERENCE.paged_attention(
        q, keys.nan_to_num(), values.nan_to_num(), batch, 0.3, shape.window
    )
    with poisoned_memory():
        out = kernels.paged_attention(q, keys, values, batch, 0.3, shape.window)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_attention_equals_the_reference(kernels: CpuKernels, num_threads: int, name: str) -> None:
    assert_parity(kernels, SHAPES[name])


@pytest.mark.parametrize("num_many", [3, 5, 8])
def test_units_cut_between_many_threads_are_merged(num_many: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_many)
    try:
        for name in ["decode-long", "decode-one-long", "decode-window40"]:
            assert_parity(CpuKernels(), SHAPES[name])
    finally:
        torch.set_num_threads(before)


def test_tokens_past_the_last_sequence_get_zeros(kernels: CpuKernels) -> None:
    trial = Trial(torch.device("cpu"), torch.float32, 0)
    shape = ATTENTION_SHAPES["mixed-group3"]
    batch, num_blocks = attention_batch(trial, shape)
    keys, values = paged_cache(trial, shape, batch, num_blocks)
    num_tokens = int(batch.query_starts[-1])
    q = torch.randn(num_tokens + 3, 3, shape.head_dim)
    with poisoned_memory():
        out = kernels.paged_attention(q, keys, values, batch, 0.3, None)
    assert out.isfinite().all()
    assert (out[num_tokens:] == 0).all()


def test_batches_in_another_dtype_are_refused() -> None:
    trial = Trial(torch.device("cpu"), torch.float32, 0)
    shape = ATTENTION_SHAPES["decode-group1"]
    batch, num_blocks = attention_batch(trial, shape)
    keys, values = paged_cache(trial, shape, batch, num_blocks)
    wide = replace(batch, context_lens=batch.context_lens.long())
    q = torch.randn(3, 1, shape.head_dim)
    with pytest.raises(ConfigError, match="int32"):
        CpuKernels().paged_attention(q, keys, values, wide, 0.3, None)

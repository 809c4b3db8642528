"""The reference kernels against torch's and Hugging Face's own formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.interface import AttentionBatch, GGMLType, PackedTensor, SamplingBatch
from octavo.kernels.reference import ReferenceKernels, filter_logits, rotate

KERNELS = ReferenceKernels()


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed))


def _ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _sampling(
    num_rows: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seeds: Tensor | None = None,
) -> SamplingBatch:
    return SamplingBatch(
        temperature=torch.full((num_rows,), temperature),
        top_k=torch.full((num_rows,), top_k, dtype=torch.int32),
        top_p=torch.full((num_rows,), top_p),
        min_p=torch.full((num_rows,), min_p),
        seeds=torch.arange(num_rows) if seeds is None else seeds,
        positions=torch.full((num_rows,), 7, dtype=torch.int32),
        all_greedy=temperature == 0,
        any_filter=top_k > 0 or top_p < 1 or min_p > 0,
    )


def test_rms_norm_is_torchs() -> None:
    x, weight = _randn(3, 5, 48), _randn(48, seed=1)
    expected = F.rms_norm(x, (48,), weight, 1e-5)
    torch.testing.assert_close(KERNELS.rms_norm(x, weight, 1e-5), expected)


def test_add_rms_norm_updates_the_residual_in_place() -> None:
    x, residual, weight = _randn(3, 48), _randn(3, 48, seed=1), _randn(48, seed=2)
    total = x + residual
    out = KERNELS.add_rms_norm(x, residual, weight, 1e-6)
    torch.testing.assert_close(residual, total)
    torch.testing.assert_close(out, F.rms_norm(total, (48,), weight, 1e-6))


def test_gated_activations_are_torchs() -> None:
    gate_up = _randn(4, 22)
    gate, up = gate_up[:, :11], gate_up[:, 11:]
    torch.testing.assert_close(KERNELS.silu_mul(gate_up), F.silu(gate) * up)
    expected = F.gelu(gate, approximate="tanh") * up
    torch.testing.assert_close(KERNELS.gelu_tanh_mul(gate_up), expected)


def test_rotation_is_hugging_faces_rotate_half() -> None:
    x, positions, head_dim = _randn(6, 2, 16), torch.arange(6) * 3, 16
    frequencies = 1.0 / 10000 ** (torch.arange(0, head_dim, 2) / head_dim)
    angles = positions[:, None] * frequencies
    emb = torch.cat([angles, angles], dim=-1)[:, None, :]
    half = torch.cat([-x[..., 8:], x[..., :8]], dim=-1)
    expected = x * emb.cos() + half * emb.sin()
    actual = rotate(x, torch.cat([angles.cos(), angles.sin()], dim=-1))
    torch.testing.assert_close(actual, expected)


def test_rotation_leaves_elements_past_rotary_dim() -> None:
    x = _randn(2, 3, 12)
    angles = _randn(2, 8, seed=1)
    torch.testing.assert_close(rotate(x, angles)[..., 8:], x[..., 8:])
    torch.testing.assert_close(rotate(x, angles)[..., :8], rotate(x[..., :8], angles))


@pytest.mark.parametrize("has_norm", [False, True])
def test_rope_and_cache_writes_slots_and_skips_padding(has_norm: bool) -> None:
    num_heads, num_kv_heads, head_dim, block_size = 4, 2, 8, 16
    qkv, cos_sin = _randn(3, 8 * head_dim), _randn(10, head_dim, seed=1)
    key_cache = torch.full((3, num_kv_heads, block_size, head_dim), 9.0)
    value_cache = key_cache.clone()
    batch = AttentionBatch(
        query_starts=_ints(0, 3),
        context_lens=_ints(3),
        block_tables=_ints(2, 1)[None],
        positions=_ints(4, 5, 0),
        slots=_ints(37, 18, -1),
        num_decodes=0,
        max_query_len=3,
        max_context_len=3,
    )
    norm = _randn(head_dim, seed=2) if has_norm else None
    q, k, v = torch.split(qkv.clone().view(3, 8, head_dim), [4, 2, 2], dim=1)
    if norm is not None:
        q, k = F.rms_norm(q, (head_dim,), norm, 1e-6), F.rms_norm(k, (head_dim,), norm, 1e-6)
    angles = cos_sin[batch.positions.long()]
    out = KERNELS.rope_and_cache(
        qkv, cos_sin, key_cache, value_cache, batch, num_heads, norm, norm, 1e-6
    )
    torch.testing.assert_close(out, rotate(q, angles))
    torch.testing.assert_close(key_cache[2, :, 5], rotate(k, angles)[0])
    torch.testing.assert_close(key_cache[1, :, 2], rotate(k, angles)[1])
    torch.testing.assert_close(value_cache[2, :, 5], v[0])
    torch.testing.assert_close(value_cache[1, :, 2], v[1])
    assert (key_cache == 9.0).sum() == key_cache.numel() - 2 * num_kv_heads * head_dim


@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_paged_attention_is_torchs_scaled_dot_product_attention(window: int | None) -> None:
    num_heads, num_kv_heads, head_dim, block_size = 6, 2, 16, 8
    key_cache = _randn(9, num_kv_heads, block_size, head_dim)
    value_cache = _randn(9, num_kv_heads, block_size, head_dim, seed=1)
    query_lens, context_lens = [1, 4, 20], [19, 4, 30]
    tables = torch.tensor([[3, 8, 1, 0], [5, 0, 0, 0], [2, 0, 7, 4]], dtype=torch.int32)
    q = _randn(sum(query_lens), num_heads, head_dim, seed=2)
    batch = AttentionBatch(
        query_starts=_ints(0, 1, 5, 25),
        context_lens=_ints(*context_lens),
        block_tables=tables,
        positions=_ints(18, *range(4), *range(10, 30)),
        slots=torch.full((25,), -1, dtype=torch.int32),
        num_decodes=1,
        max_query_len=20,
        max_context_len=30,
    )
    out = KERNELS.paged_attention(q, key_cache, value_cache, batch, 0.3, window)
    for s, (start, num_new, length) in enumerate(
        zip([0, 1, 5], query_lens, context_lens, strict=True)
    ):
        slots = [
            int(tables[s, i // block_size]) * block_size + i % block_size for i in range(length)
        ]
        k = key_cache.transpose(1, 2).reshape(-1, num_kv_heads, head_dim)[slots]
        v = value_cache.transpose(1, 2).reshape(-1, num_kv_heads, head_dim)[slots]
        mask = torch.ones(num_new, length, dtype=torch.bool).tril(length - num_new)
        if window is not None:
            mask &= ~torch.ones_like(mask).tril(length - num_new - window)
        expected = F.scaled_dot_product_attention(
            q[start : start + num_new].transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            attn_mask=mask,
            scale=0.3,
            enable_gqa=True,
        )[0].transpose(0, 1)
        torch.testing.assert_close(out[start : start + num_new], expected)


def test_paged_attention_gives_zeros_to_padding() -> None:
    cache = _randn(2, 1, 8, 16)
    batch = AttentionBatch(
        query_starts=_ints(0, 1, 1),
        context_lens=_ints(3, 0),
        block_tables=_ints(1, 0)[:, None],
        positions=_ints(2, 0, 0),
        slots=_ints(8, -1, -1),
        num_decodes=1,
        max_query_len=1,
        max_context_len=3,
    )
    out = KERNELS.paged_attention(_randn(3, 2, 16), cache, cache, batch, 1.0, None)
    assert out[0].abs().sum() > 0
    assert (out[1:] == 0).all()


def test_filters_are_hugging_faces_warpers() -> None:
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = _randn(6, 300) * 3
    ids = torch.zeros(6, 1, dtype=torch.long)
    expected = TopKLogitsWarper(40)(ids, logits)
    expected = TopPLogitsWarper(0.8)(ids, expected)
    expected = MinPLogitsWarper(0.05)(ids, expected)
    ones = torch.ones(6)
    actual = filter_logits(logits, (ones * 40).int(), ones * 0.8, ones * 0.05)
    assert torch.equal(actual, expected)


def test_filters_that_are_off_drop_nothing() -> None:
    logits = _randn(2, 50)
    off = filter_logits(logits, _ints(0, 0), torch.ones(2), torch.zeros(2))
    assert torch.equal(off, logits)
    over = filter_logits(logits, _ints(50, 1000), torch.ones(2), torch.zeros(2))
    assert torch.equal(over, logits)


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), [(2, 1.0, 0.0), (0, 0.5, 0.0), (0, 1.0, 0.9), (1, 0.0, 1.0)]
)
def test_equal_logits_share_their_fate(top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]])
    kept = filter_logits(logits, _ints(top_k), torch.tensor([top_p]), torch.tensor([min_p]))
    assert kept.isfinite().tolist() == [[False, True, True, False, True]]


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((64, 40), -math.inf)
    logits[:, 11] = -50.0
    assert (KERNELS.sample(logits, _sampling(64)) == 11).all()
    assert (KERNELS.sample(logits, _sampling(64, top_p=0.9, top_k=3, min_p=0.1)) == 11).all()


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    logits = torch.tensor([[0.0, 5.0, 5.0], [7.0, 5.0, 7.0]])
    assert KERNELS.sample(logits, _sampling(2, temperature=0)).tolist() == [1, 0]


def test_a_row_draws_the_same_token_in_any_batch() -> None:
    logits, seeds = _randn(5, 100), torch.tensor([3, 1 << 40, -5, 8, 9])
    together = KERNELS.sample(logits, _sampling(5, seeds=seeds))
    for row in range(5):
        alone = KERNELS.sample(logits[row : row + 1], _sampling(1, seeds=seeds[row : row + 1]))
        assert alone.item() == together[row].item()


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    num_rows = 20_000
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    ids = KERNELS.sample(logits.expand(num_rows, 4), _sampling(num_rows, temperature=0.7))
    frequencies = torch.bincount(ids, minlength=4) / num_rows
    torch.testing.assert_close(frequencies, (logits / 0.7).softmax(0), atol=0.012, rtol=0)


def test_merged_linear_concatenates_outputs() -> None:
    parts, x = [_randn(3, 8), _randn(5, 8, seed=1)], _randn(2, 8, seed=2)
    bias = _randn(8, seed=3)
    linear = KERNELS.prepare_linear(parts, bias, torch.float32)
    expected = torch.cat([x @ parts[0].T, x @ parts[1].T], dim=1) + bias
    torch.testing.assert_close(linear(x), expected)
    assert (linear.in_features, linear.out_features, linear.size_bytes) == (8, 8, 4 * 72)
    assert torch.equal(linear.rows(_ints(4, 0)), torch.stack([parts[1][1], parts[0][0]]))


def test_packed_parts_are_refused() -> None:
    packed = PackedTensor(torch.zeros(2, 34, dtype=torch.uint8), GGMLType.Q8_0, 32)
    with pytest.raises(TypeError, match="Q8_0"):
        KERNELS.prepare_linear([packed], None, torch.float32)

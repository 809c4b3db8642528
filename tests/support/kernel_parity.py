"""Every Triton kernel against the reference, as named cases for any device.

Run as a program with ``TRITON_INTERPRET=1`` for the interpreter (it must be set before Triton is
imported, so the unit tests start a process of their own): prints one JSON line for each case named
on the command line, with its error or null. The GPU tests call :func:`check` in their process.

Inputs are random, fresh for every seed; caches hold NaN wherever no visible token lies, unused
table entries point nowhere, and uninitialised outputs are NaN.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from octavo.kernels.interface import AttentionBatch, SamplingBatch, SharedPrefix
from octavo.kernels.philox import gumbel_noise
from octavo.kernels.reference import ReferenceKernels, filter_logits, mask_logits

_NOWHERE = 1 << 28
_CUTS = os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Let ``torch.empty`` give NaN (and the largest integers) instead of whatever lay there."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Trial:
    """Where and on what a case runs."""

    device: torch.device
    dtype: torch.dtype
    seed: int

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype or self.dtype)

    def ints(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def assert_close(self, actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
        """float32: every element within ``atol``. Else: the error's norm under 1 % of the result's,
        or 2 % under the interpreter, which cuts float32 to bf16 where everybody else rounds (seen
        in triton 3.7.1), so that its errors are twice as large and all of one sign."""
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        assert actual.isfinite().all(), "not every element was written, or something was NaN"
        if self.dtype == torch.float32:
            torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)
        error = (actual.double() - expected.double()).norm()
        limit = (2e-2 if _CUTS else 1e-2) * expected.double().norm()
        assert error <= limit, f"error of norm {error:.3g} over {limit:.3g}"


def _triton(trial: Trial) -> Any:
    from octavo.kernels.triton import TritonKernels

    return TritonKernels(trial.device)


REFERENCE = ReferenceKernels()


# Row kernels


def norms(trial: Trial, num_tokens: int, size: int) -> None:
    x, residual = trial.randn(num_tokens, size), trial.randn(num_tokens, size)
    weight = trial.randn(size, dtype=torch.float32)
    kernels = _triton(trial)
    with poisoned_memory():
        out = kernels.rms_norm(x, weight, 1e-6)
    trial.assert_close(out, REFERENCE.rms_norm(x, weight, 1e-6))
    added = residual.clone()
    expected = REFERENCE.add_rms_norm(x, residual, weight, 1e-6)
    with poisoned_memory():
        out = kernels.add_rms_norm(x, added, weight, 1e-6)
    trial.assert_close(out, expected)
    trial.assert_close(added, residual)
    if trial.device.type == "cuda":  # the interpreter does not round float32 to bf16 as torch does
        assert torch.equal(added, residual)


def linear(trial: Trial, num_tokens: int, shape: tuple[int, int], has_bias: bool = False) -> None:
    """``shape``: out and in features. The reference multiplies in float32 and rounds once."""
    weights = [trial.randn(shape[0] // 2, shape[1]), trial.randn(-(-shape[0] // 2), shape[1])]
    bias = trial.randn(shape[0]) if has_bias else None
    x = trial.randn(num_tokens, shape[1])
    product = _triton(trial).prepare_linear(weights, bias, trial.dtype)
    with poisoned_memory():
        out = product(x)
    expected = x.double() @ torch.cat(weights).double().t()
    if bias is not None:
        expected += bias.double()
    if trial.dtype == torch.float32:
        torch.testing.assert_close(out.double(), expected, atol=1e-3, rtol=1e-4)
    else:
        trial.assert_close(out, expected.to(trial.dtype))


def activations(trial: Trial, num_tokens: int, size: int) -> None:
    gate_up = 4 * trial.randn(num_tokens, 2 * size)
    gate_up[0, 0], gate_up[0, 1] = 80.0, -80.0
    kernels = _triton(trial)
    with poisoned_memory():
        silu, gelu = kernels.silu_mul(gate_up), kernels.gelu_tanh_mul(gate_up)
    trial.assert_close(silu, REFERENCE.silu_mul(gate_up))
    trial.assert_close(gelu, REFERENCE.gelu_tanh_mul(gate_up))


def rope(
    trial: Trial,
    heads: tuple[int, int],
    head_dim: int,
    rotary_dim: int,
    has_norm: bool,
    block_size: int = 16,
    num_tokens: int = 5,
    is_decode: bool = False,
) -> None:
    """``is_decode``: a token of each of so many sequences, and the product comes in two parts."""
    num_heads, num_kv_heads = heads
    num_blocks = num_tokens
    qkv = trial.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    angles = trial.randn(40, rotary_dim, dtype=torch.float32)
    norm = trial.randn(head_dim, dtype=torch.float32) if has_norm else None
    slots = torch.randperm(num_blocks * block_size)[:num_tokens].int().to(trial.device)
    slots[1::3] = -1
    batch = AttentionBatch(
        query_starts=trial.ints(list(range(num_tokens + 1)) if is_decode else [0, num_tokens]),
        context_lens=trial.ints([num_tokens] * (num_tokens if is_decode else 1)),
        block_tables=trial.ints([0])[None],
        positions=torch.randint(40, (num_tokens,)).int().to(trial.device),
        slots=slots,
        num_decodes=num_tokens if is_decode else 0,
        max_query_len=1 if is_decode else num_tokens,
        max_context_len=num_tokens,
    )
    # Key and value blocks interleaved in one tensor: block strides are not the block's size.
    cache = trial.randn(num_blocks, 2, num_kv_heads, block_size, head_dim)
    expected_cache = cache.clone()
    whole = qkv.clone()
    expected = REFERENCE.rope_and_cache(
        whole, angles, expected_cache[:, 0], expected_cache[:, 1], batch, num_heads,
        norm, norm, 1e-6,
    ).to(trial.dtype)  # fmt: skip
    out = _triton(trial).rope_and_cache(
        qkv, angles, cache[:, 0], cache[:, 1], batch, num_heads, norm, norm, 1e-6
    )
    trial.assert_close(out, expected)
    trial.assert_close(cache, expected_cache)
    if is_decode:
        return
    # The keys stay in the product too, where prefill attention reads them.
    kept = qkv.view(num_tokens, -1, head_dim)[:, num_heads : num_heads + num_kv_heads]
    written = slots >= 0
    at = slots[written].long()
    expected_keys = expected_cache[at // block_size, 0, :, at % block_size]
    trial.assert_close(kept[written], expected_keys)


# Attention


@dataclass(frozen=True)
class AttentionShape:
    """A batch of sequences: (tokens in the cache before, new tokens); decodes come first."""

    sequences: tuple[tuple[int, int], ...]
    num_decodes: int
    group_size: int = 2
    num_kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    num_padding: int = 0
    """Sequences past the last: of no tokens, or (in a batch of decodes) of length 0."""
    sharers: tuple[int, ...] = ()
    """Decodes whose first ``num_shared_blocks`` blocks are the same."""
    num_shared_blocks: int = 0

    @property
    def num_shared_tokens(self) -> int:
        return self.num_shared_blocks * self.block_size

    @property
    def scale(self) -> float:
        """Sharper than a model's, and alike for every size of head: the rounding of a score of 20
        is 2e-6, and the softmax hands it on to the result."""
        return 2.4 * self.head_dim**-0.5


def attention_batch(trial: Trial, shape: AttentionShape) -> tuple[AttentionBatch, int]:
    """The batch, and the number of blocks its cache needs."""
    query_lens = [new for _, new in shape.sequences]
    context_lens = [cached + new for cached, new in shape.sequences]
    num_blocks = [-(-length // shape.block_size) for length in context_lens]
    order = torch.randperm(sum(num_blocks) + 1)
    num_sequences = len(query_lens) + shape.num_padding
    tables = torch.full((num_sequences, max(num_blocks) + 1), _NOWHERE)
    taken = 0
    for row, count in enumerate(num_blocks):
        tables[row, :count] = order[taken : taken + count]
        taken += count
    for row in shape.sharers:
        shared = slice(shape.num_shared_blocks)
        tables[row, shared] = tables[shape.sharers[0], shared]
    is_all_decodes = shape.num_decodes == len(query_lens)
    padded_lens = query_lens + [int(is_all_decodes)] * shape.num_padding
    starts = torch.tensor([0, *padded_lens]).cumsum(0)
    num_tokens = int(starts[-1])
    batch = AttentionBatch(
        query_starts=starts.int().to(trial.device),
        context_lens=trial.ints(context_lens + [0] * shape.num_padding),
        block_tables=tables.int().to(trial.device),
        positions=trial.ints([0] * num_tokens),
        slots=trial.ints([-1] * num_tokens),
        num_decodes=num_sequences if is_all_decodes else shape.num_decodes,
        max_query_len=max(query_lens),
        max_context_len=max(context_lens),
    )
    if batch.num_decodes % 2:  # some batches come sorted
        order = batch.context_lens[: batch.num_decodes].argsort(descending=True)
        batch = replace(batch, longest_first=order)
    return replace(batch, shared=_shared_prefix(trial, shape, batch)), sum(num_blocks) + 1


def _shared_prefix(
    trial: Trial, shape: AttentionShape, batch: AttentionBatch
) -> SharedPrefix | None:
    if not shape.sharers:
        return None
    lens = [shape.num_shared_tokens * (row in shape.sharers) for row in range(batch.num_decodes)]
    return SharedPrefix(
        lens=trial.ints(lens), sharer=torch.tensor(shape.sharers[0], device=trial.device)
    )


def paged_cache(
    trial: Trial, shape: AttentionShape, batch: AttentionBatch, num_blocks: int
) -> tuple[Tensor, Tensor]:
    """Random keys and values where a sequence has a visible token, NaN everywhere else."""
    cache = torch.full(
        (num_blocks, 2, shape.num_kv_heads, shape.block_size, shape.head_dim),
        float("nan"),
        dtype=trial.dtype,
        device=trial.device,
    )
    for row, (cached, new) in enumerate(shape.sequences):
        first = 0 if shape.window is None else max(0, cached - shape.window + 1)
        positions = torch.arange(first, cached + new, device=trial.device)
        blocks = batch.block_tables[row, positions // shape.block_size].long()
        drawn = trial.randn(len(positions), 2, shape.num_kv_heads, shape.head_dim)
        cache[blocks, :, :, positions % shape.block_size] = drawn
    return cache[:, 0], cache[:, 1]


def attention(trial: Trial, shape: AttentionShape) -> None:
    batch, num_blocks = attention_batch(trial, shape)
    keys, values = paged_cache(trial, shape, batch, num_blocks)
    num_heads = shape.group_size * shape.num_kv_heads
    num_tokens = int(batch.query_starts[-1])
    # As a view of a merged product, so that rows are not the size of q.
    num_all_heads = num_heads + 2 * shape.num_kv_heads
    product = trial.randn(num_tokens, num_all_heads * shape.head_dim)
    q = product.view(num_tokens, num_all_heads, shape.head_dim)[:, :num_heads]
    _keep_new_heads(product, keys, values, batch, shape)
    expected = _masked_reference(q, keys, values, batch, shape)
    kernels = _triton(trial)
    # Decodes take no notice of the product: their second call finds the counters as the first
    # left them.
    for qkv in (None, product):
        with poisoned_memory():
            out = kernels.paged_attention(q, keys, values, batch, shape.scale, shape.window, qkv)
        trial.assert_close(out, expected)


def _keep_new_heads(
    product: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, shape: AttentionShape
) -> None:
    """Put into the product what the pages hold of this step's tokens, as rope does."""
    num_kv_heads, head_dim = shape.num_kv_heads, shape.head_dim
    heads = product.view(len(product), -1, head_dim)
    for row, (cached, new) in enumerate(shape.sequences):
        positions = torch.arange(cached, cached + new, device=keys.device)
        blocks = batch.block_tables[row, positions // shape.block_size].long()
        offsets = positions % shape.block_size
        start = int(batch.query_starts[row])
        heads[start : start + new, -2 * num_kv_heads : -num_kv_heads] = keys[blocks, :, offsets]
        heads[start : start + new, -num_kv_heads:] = values[blocks, :, offsets]


def _masked_reference(
    q: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, shape: AttentionShape
) -> Tensor:
    """The reference over a cache without NaN: it gives hidden tokens weight 0, but reads them."""
    return REFERENCE.paged_attention(
        q, keys.nan_to_num(), values.nan_to_num(), batch, shape.scale, shape.window
    )


def decode_long(trial: Trial) -> None:
    """Many splits of one sequence, beside a short one that has one split of them."""
    lengths = ((1500, 1), (3, 1), (700, 1)) if trial.device.type == "cpu" else (
        (30000, 1), (3, 1), (7000, 1))  # fmt: skip
    attention(trial, AttentionShape(lengths, 3, group_size=4, num_kv_heads=1))


# Sampling


def sampling_batch(
    trial: Trial,
    num_rows: int,
    temperatures: list[float],
    top_k: list[int] | None = None,
    top_p: list[float] | None = None,
    min_p: list[float] | None = None,
) -> SamplingBatch:
    """Parameters repeated over the rows; seeds and positions are random."""

    def cycle(values: list[float], dtype: torch.dtype) -> Tensor:
        repeated = (values * num_rows)[:num_rows]
        return torch.tensor(repeated, dtype=dtype, device=trial.device)

    return SamplingBatch(
        temperature=cycle(temperatures, torch.float32),
        top_k=cycle([*(top_k or [0])], torch.int32),
        top_p=cycle(top_p or [1.0], torch.float32),
        min_p=cycle(min_p or [0.0], torch.float32),
        seeds=torch.randint(-(2**62), 2**62, (num_rows,)).to(trial.device),
        positions=torch.randint(2**20, (num_rows,)).int().to(trial.device),
        all_greedy=all(value == 0 for value in temperatures),
        any_filter=bool(top_k or top_p or min_p),
    )


def assert_same_draw(ids: Tensor, logits: Tensor, batch: SamplingBatch) -> None:
    """The ids are the reference's, or their scores tie with its within float32 rounding.

    Filters are compared with their limits moved outwards by a hair, for the same reason.
    """
    expected = REFERENCE.sample(logits, batch)
    assert ids.dtype == torch.int64
    differs = ids != expected
    if not differs.any():
        return
    is_greedy = batch.temperature == 0
    assert not (differs & is_greedy).any(), "a greedy row missed its argmax"
    scaled = logits / torch.where(is_greedy, 1.0, batch.temperature)[:, None]
    wide = replace(batch, top_p=batch.top_p + 1e-5, min_p=batch.min_p * (1 - 1e-5))
    tight = replace(batch, top_p=batch.top_p - 1e-5, min_p=batch.min_p * (1 + 1e-5))
    noise = gumbel_noise(batch.seeds, batch.positions, logits.shape[1])
    scores = scaled.double() + noise
    for row in differs.nonzero().flatten().tolist():
        kept = _kept(scaled, wide)[row]
        assert kept[ids[row]], f"row {row}: token {int(ids[row])} was filtered out"
        sure = scores[row].masked_fill(~_kept(scaled, tight)[row], -float("inf"))
        assert scores[row, ids[row]] >= sure.max() - 1e-4, f"row {row}: not the best score"


def _kept(scaled: Tensor, batch: SamplingBatch) -> Tensor:
    return filter_logits(scaled, batch.top_k, batch.top_p, batch.min_p) > -float("inf")


def sampling(
    trial: Trial, vocab_size: int, num_rows: int, batch: Callable[[Trial, int], SamplingBatch]
) -> None:
    parameters = batch(trial, num_rows)
    logits = 3 * trial.randn(num_rows, vocab_size, dtype=torch.float32)
    logits[0, : vocab_size // 2] = -float("inf")  # as a grammar's mask leaves a row
    logits[1, 3::7] = logits[1].max()  # ties
    if num_rows > 2:
        logits[2] = -float("inf")
        logits[2, vocab_size - 1] = -3.0
    kernels = _triton(trial)
    for _ in range(2):
        with poisoned_memory():
            ids = kernels.sample(logits, parameters)
        assert_same_draw(ids, logits, parameters)


def with_masks(batch: SamplingBatch, vocab_size: int) -> SamplingBatch:
    """Masks for all rows but every third: of few tokens, of nearly all, of one; and one that is
    nobody's, which leaves nothing."""
    num_rows, device = len(batch.seeds), batch.seeds.device
    kept = (
        torch.rand(num_rows + 1, vocab_size)
        < torch.tensor([0.02, 0.98, 0.5]).repeat(-(-(num_rows + 1) // 3))[: num_rows + 1, None]
    )
    kept[:, vocab_size - 1] = True
    kept[0, :-1] = False
    kept[-1] = False
    bits = torch.zeros(num_rows + 1, -(-vocab_size // 32) * 32, dtype=torch.int64)
    bits[:, :vocab_size] = kept.long()
    bits[:, vocab_size:] = torch.randint(2, (bits.shape[1] - vocab_size,))  # nobody may look
    words = (bits.view(num_rows + 1, -1, 32) << torch.arange(32)).sum(-1)
    rows = torch.randperm(num_rows)
    rows[2::3] = -1
    return replace(batch, masks=words.to(torch.int32).to(device), mask_rows=rows.int().to(device))


def masked_sampling(
    trial: Trial, vocab_size: int, num_rows: int, batch: Callable[[Trial, int], SamplingBatch]
) -> None:
    parameters = with_masks(batch(trial, num_rows), vocab_size)
    logits = 3 * trial.randn(num_rows, vocab_size, dtype=torch.float32)
    assert parameters.masks is not None
    assert parameters.mask_rows is not None
    expected = mask_logits(logits, parameters.masks, parameters.mask_rows)
    for _ in range(2):
        ids = _triton(trial).sample(logits.clone(), parameters)
        assert_same_draw(ids, expected, replace(parameters, masks=None, mask_rows=None))


def noise(trial: Trial, num_rows: int, vocab_size: int) -> None:
    """Equal logits: the argmax is of the noise alone."""
    batch = sampling_batch(trial, num_rows, [1.0])
    logits = torch.zeros(num_rows, vocab_size, device=trial.device)
    assert_same_draw(_triton(trial).sample(logits, batch), logits, batch)


def gumbel(trial: Trial) -> None:
    """The noise of chosen words: the ends of the range, where float32 is short of bits, too."""
    from kernel_probes import gumbel_of_words

    edges = [0, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 256, 2**32 - 257, 2**32 - 2**26]
    words = torch.cat([torch.tensor(edges), torch.randint(2**32, (4096 - len(edges),))])
    u = ((words >> 8).double() + 0.5) * 2.0**-24
    expected = -torch.log(-torch.log(u))
    actual = gumbel_of_words(words.to(trial.device)).cpu().double()
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=1e-6)


# FP8 caches


def fp8_cache(trial: Trial) -> None:
    """Keys and values are stored divided by their scales, saturated, and read back."""
    from octavo.kernels.triton.decode_attention import decode_attention
    from octavo.kernels.triton.launch import Machine
    from octavo.kernels.triton.prefill_attention import prefill_attention
    from octavo.kernels.triton.rope_cache import rope_and_cache

    shape = AttentionShape(((0, 1), (0, 20)), 1, group_size=4, num_kv_heads=2, head_dim=64)
    batch, num_blocks = attention_batch(trial, shape)
    blocks = batch.block_tables[1, torch.arange(20) // 16]
    slots = blocks * 16 + torch.arange(20, device=trial.device) % 16
    batch.slots.copy_(torch.cat([batch.block_tables[0, :1] * 16, slots]))
    qkv = 2 * trial.randn(21, 12 * 64)
    qkv[3, 640] = 1e4  # saturates; a plain conversion gives NaN
    turns = trial.randn(1, 32, dtype=torch.float32)
    angles = torch.cat([turns.cos(), turns.sin()], dim=1)
    cache = torch.zeros(2, num_blocks, 2, 16, 64, dtype=torch.float8_e4m3fn, device=trial.device)
    wide = torch.zeros(cache.shape, device=trial.device)
    expected_q = REFERENCE.rope_and_cache(
        qkv.clone(), angles, wide[0], wide[1], batch, 8, None, None, 1e-6
    )
    scales = torch.tensor([0.5, 0.25], device=trial.device)[:, None, None, None, None]
    expected = (wide / scales).clamp(-448, 448).to(cache.dtype).float()
    machine = Machine.of(trial.device)
    q = rope_and_cache(
        *(qkv, angles, cache[0], cache[1], batch, 8, None, None, 1e-6, machine),
        key_scale=0.5,
        value_scale=0.25,
    )
    trial.assert_close(q, expected_q)
    if trial.device.type == "cuda":  # within one step of e4m3, for halves that fall either way
        torch.testing.assert_close(cache.float(), expected, rtol=0.15, atol=2e-3)
    # The interpreter loses the carry of a rounded mantissa (7.75 becomes 4, not 8).
    assert (cache.float() - expected).norm() < 0.1 * expected.norm()
    stored = cache.float() * scales
    out = torch.full_like(expected_q, float("nan"))
    machine = Machine.of(trial.device)
    decode_attention(q, cache[0], cache[1], out, batch, 0.1, None, machine, 0.5, 0.25)
    prefill_attention(q, cache[0], cache[1], out, batch, 0.1, None, machine, 0.5, 0.25)
    trial.assert_close(out, REFERENCE.paged_attention(q, stored[0], stored[1], batch, 0.1, None))


# Batch invariance


def _invariant(trial: Trial) -> Any:
    from octavo.kernels.triton.invariant import InvariantTritonKernels

    return InvariantTritonKernels(trial.device)


def assert_same_bits(trial: Trial, actual: Tensor, expected: Tensor, what: object) -> None:
    """The interpreter multiplies by a library whose sums depend on a row's place in its tile."""
    if trial.device.type == "cuda":
        assert torch.equal(actual, expected), what
    else:
        trial.assert_close(actual, expected)


def products(trial: Trial, num_inputs: int, num_outputs: int, num_rows: int) -> None:
    """Right, and the same bits for a row whatever rows are beside it."""
    weight = trial.randn(num_outputs, num_inputs) / num_inputs**0.5
    bias, x = trial.randn(num_outputs), trial.randn(num_rows, num_inputs)
    for one_bias in (None, bias):
        linear = _invariant(trial).prepare_linear([weight], one_bias, trial.dtype)
        with poisoned_memory():
            whole = linear(x)
        wide = torch.nn.functional.linear(
            x.double(), weight.double(), None if one_bias is None else one_bias.double()
        )
        # One chain of float32 additions: the error of results around 1 grows with its root, and
        # this is the largest of millions.
        atol = max(1e-5, 8 * torch.finfo(torch.float32).eps * num_inputs**0.5)
        trial.assert_close(whole, wide.to(trial.dtype), atol)
        for count in {1, 2, 63, 64, 65, 200, 256, 257, num_rows - 1}:
            if count <= num_rows:
                for first in (0, num_rows - count):
                    part = linear(x[first : first + count])
                    assert_same_bits(trial, part, whole[first : first + count], (count, first))


def attention_in_chunks(
    trial: Trial, length: int, head_dim: int = 64, window: int | None = None
) -> None:
    """A token's attention has the same bits computed alone, in a chunk, or in one prefill."""
    shape = AttentionShape(((0, length), (0, 9)), 0, head_dim=head_dim, window=window)
    batch, num_blocks = attention_batch(trial, shape)
    keys, values = paged_cache(trial, shape, batch, num_blocks)
    q = trial.randn(length + 9, 4, head_dim)
    kernels = _invariant(trial)
    whole = kernels.paged_attention(q, keys, values, batch, shape.scale, window)[:length]
    for sizes in ((1, 30, 1, 17), (5, 64, 2)):
        end = length
        for size in sizes:
            start, end = end - size, end
            chunk = replace(
                batch,
                query_starts=trial.ints([0, size]),
                context_lens=trial.ints([end]),
                block_tables=batch.block_tables[:1],
                num_decodes=int(size == 1),
                max_query_len=size,
                max_context_len=end,
            )
            part = kernels.paged_attention(q[start:end], keys, values, chunk, shape.scale, window)
            assert_same_bits(trial, part, whole[start:end], (size, end))
            end = start


# What the host decides


def splits(trial: Trial) -> None:
    """Splits fill the device, never exceed what the lengths can use, and are powers of two."""
    from octavo.kernels.triton.decode_attention import DecodeConfig, num_decode_splits

    config = DecodeConfig(64, 128, 4, 5, programs_per_multiprocessor=4, max_splits=64)
    assert num_decode_splits(8, 8192, 132, config) == 64
    assert num_decode_splits(8, 100, 132, config) == 1
    assert num_decode_splits(8, 512, 132, config) == 4
    assert num_decode_splits(64 * 8, 8192, 132, config) == 2
    assert num_decode_splits(256 * 8, 8192, 132, config) == 1
    assert num_decode_splits(1 << 20, 8192, 132, config) == 1


def chunks(trial: Trial) -> None:
    """Chunks cover every vocabulary, none is empty, and they fit the merging program."""
    from octavo.kernels.triton import sampling as module

    for vocab_size in [1, 100, 32000, 128256, 151936, 262144]:
        for num_rows in [1, 2, 7, 64, 256, 1000]:
            blocks, count = module.chunks_of(num_rows, vocab_size, 132)
            assert 1 <= count <= module._MAX_CHUNKS
            size = blocks * module._BLOCK
            assert (count - 1) * size < vocab_size <= count * size


Run = Callable[[Trial], None]

SAMPLING_BATCHES: dict[str, Callable[[Trial, int], SamplingBatch]] = {
    "greedy": lambda trial, rows: sampling_batch(trial, rows, [0.0]),
    "random": lambda trial, rows: sampling_batch(trial, rows, [0.7, 1.0, 3.0]),
    "mixed": lambda trial, rows: sampling_batch(trial, rows, [0.0, 1.0, 0.6]),
    "top-k": lambda trial, rows: sampling_batch(trial, rows, [1.0], top_k=[1, 3, 40, 10**6, 0]),
    "top-p": lambda trial, rows: sampling_batch(trial, rows, [0.7], top_p=[0.9, 0.3, 0.0, 1.0]),
    "min-p": lambda trial, rows: sampling_batch(trial, rows, [1.5], min_p=[0.1, 0.0, 1.0]),
    "all-filters": lambda trial, rows: sampling_batch(
        trial, rows, [0.6, 0.0, 2.0],
        top_k=[20, 5, 0, 200], top_p=[0.95, 0.5, 1.0], min_p=[0.0, 0.05],
    ),
}  # fmt: skip

MIXED = ((17, 1), (40, 1), (0, 19), (21, 6), (0, 2))


def _cases() -> dict[str, Run]:
    """Small cases: any device, any dtype."""
    cases: dict[str, Run] = {}
    for num_tokens, size in [(3, 64), (1, 576), (2, 1000)]:
        cases[f"norm-{num_tokens}x{size}"] = partial(norms, num_tokens=num_tokens, size=size)
        cases[f"activation-{num_tokens}x{size}"] = partial(
            activations, num_tokens=num_tokens, size=size
        )
    for num_tokens, shape, has_bias in [
        (1, (70, 64), True),
        (1, (130, 2500), False),
        (2, (64, 72), False),
        (17, (200, 320), True),
        (40, (66, 136), False),
        (65, (64, 128), True),
        (3, (10, 9), False),
        (0, (10, 64), False),
    ]:
        name = f"linear-{num_tokens}x{shape[0]}x{shape[1]}"
        cases[name] = partial(linear, num_tokens=num_tokens, shape=shape, has_bias=has_bias)
    for heads, head_dim, rotary_dim, has_norm, block_size in [
        ((4, 2), 64, 64, False, 16),
        ((9, 3), 64, 64, True, 32),
        ((2, 1), 80, 32, True, 16),
        ((3, 3), 96, 96, False, 8),
        ((16, 1), 128, 128, True, 16),
        ((12, 12), 256, 64, False, 16),
    ]:
        name = f"rope-{heads[0]}/{heads[1]}x{head_dim}r{rotary_dim}" + "-norm" * has_norm
        cases[name] = partial(
            rope,
            heads=heads,
            head_dim=head_dim,
            rotary_dim=rotary_dim,
            has_norm=has_norm,
            block_size=block_size,
        )
    for heads, head_dim, rotary_dim, has_norm in [
        ((4, 2), 64, 64, False),
        ((3, 1), 80, 32, True),
    ]:
        cases[f"rope-decode-x{head_dim}"] = partial(
            rope,
            heads=heads,
            head_dim=head_dim,
            rotary_dim=rotary_dim,
            has_norm=has_norm,
            is_decode=True,
        )
    for name, shape in ATTENTION_SHAPES.items():
        cases[name] = partial(attention, shape=shape)
    cases["decode-long"] = decode_long
    for inputs, outputs, rows in [(64, 48, 70), (100, 33, 5)]:
        cases[f"products-{rows}x{inputs}x{outputs}"] = partial(
            products, num_inputs=inputs, num_outputs=outputs, num_rows=rows
        )
    for window in [None, 20]:
        cases[f"attention-in-chunks-window{window}"] = partial(
            attention_in_chunks, length=110, window=window
        )
    cases["fp8-cache"] = fp8_cache
    return cases


def _float32_cases() -> dict[str, Run]:
    """Of what is float32 (or no number of a model's) whatever the model's dtype is."""
    cases: dict[str, Run] = {}
    for name, batch in SAMPLING_BATCHES.items():
        cases[f"sampling-{name}"] = partial(sampling, vocab_size=1000, num_rows=5, batch=batch)
    for name, batch in SAMPLING_BATCHES.items():
        cases[f"masked-sampling-{name}"] = partial(
            masked_sampling, vocab_size=1000, num_rows=5, batch=batch
        )
    cases["masked-sampling-odd-vocab"] = lambda t: masked_sampling(
        t, 777, 7, SAMPLING_BATCHES["all-filters"]
    )
    cases["sampling-odd-vocab"] = lambda t: sampling(t, 777, 2, SAMPLING_BATCHES["mixed"])
    cases["sampling-noise"] = lambda t: noise(t, 8, 2048)
    cases["sampling-gumbel"] = gumbel
    cases["splits"] = splits
    cases["chunks"] = chunks
    return cases


def _attention_shapes() -> dict[str, AttentionShape]:
    decodes = ((0, 1), (15, 1), (16, 1), (130, 1))
    shapes = {
        f"decode-group{group}": AttentionShape(decodes[1:], 3, group_size=group, num_kv_heads=1)
        for group in [1, 2, 3, 5, 7, 8, 12, 16]
    }
    for head_dim, block_size in [(64, 32), (80, 16), (96, 16), (128, 8), (256, 16)]:
        shapes[f"decode-head{head_dim}-block{block_size}"] = AttentionShape(
            decodes, 4, head_dim=head_dim, block_size=block_size
        )
        shapes[f"prefill-head{head_dim}-block{block_size}"] = AttentionShape(
            ((33, 9), (0, 40)), 0, head_dim=head_dim, block_size=block_size, num_kv_heads=1
        )
    for window in [1, 7, 40, 1000]:
        shapes[f"decode-window{window}"] = AttentionShape(decodes, 4, window=window)
        shapes[f"mixed-window{window}"] = AttentionShape(MIXED, 2, window=window)
    for group in [1, 3, 7, 16]:
        shapes[f"mixed-group{group}"] = AttentionShape(
            MIXED, 2, group_size=group, num_kv_heads=1, num_padding=2
        )
    sharing = ((40, 1), (9, 1), (32, 1), (130, 1), (33, 1))
    for name, sharers, num_blocks, group in [
        ("all", (0, 2, 3, 4), 2, 2), ("few", (3, 0), 1, 3), ("long", (3, 3), 8, 16),
    ]:  # fmt: skip
        shapes[f"decode-shared-{name}"] = AttentionShape(
            sharing, 5, group_size=group, sharers=sharers, num_shared_blocks=num_blocks,
            num_padding=2,
        )  # fmt: skip
    shapes["mixed-shared"] = AttentionShape(
        ((40, 1), (36, 1), (5, 9)), 2, head_dim=80, sharers=(1, 0), num_shared_blocks=2
    )
    shapes["decode-shared-window"] = AttentionShape(
        sharing, 5, window=20, sharers=(0, 3), num_shared_blocks=1
    )
    shapes["decode-padded"] = AttentionShape(decodes, 4, num_padding=3)
    shapes["prefill-alone"] = AttentionShape(((0, 70),), 0)
    shapes["prefill-prefix"] = AttentionShape(((150, 33), (64, 64), (1, 2)), 0)
    shapes["prefill-one-token"] = AttentionShape(((5, 1), (0, 1), (70, 1)), 0)
    return shapes


ATTENTION_SHAPES = _attention_shapes()
FLOAT32_CASES = _float32_cases()
CASES = _cases() | FLOAT32_CASES


# The whole engine around the kernels


def engine(trial: Trial, family: str, is_greedy: bool, is_shared: bool = False) -> None:
    """A tiny model says the same with these kernels as with the reference, token for token.

    Greedy runs go through the padded steps of CUDA graphs, one step ahead; the others draw.
    """
    from octavo.sampling_params import SamplingParams
    from tiny_engine import TinyEngine, UncapturedGraphs

    assert trial.dtype == torch.float32, "rounding would choose the tokens"
    params = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, seed=5, max_tokens=3)
    if is_greedy:
        params = SamplingParams(temperature=0, max_tokens=4)
    prompts = [[1, 2, 3, 4, 5], list(range(3, 25)), [7]]
    if is_shared:
        prompts = [[*range(2, 20), *own] for own in ([1], [2, 3], [4, 5, 6])]
    with tempfile.TemporaryDirectory() as folder:
        expected = TinyEngine(Path(folder) / "reference", family)
        actual = TinyEngine(Path(folder) / "triton", family, kernels=_triton(trial))
        core = actual.core(
            max_num_batched_tokens=16,
            look_ahead=int(is_greedy),
            graphs=UncapturedGraphs if is_greedy else None,
        )
        with _counted_shared_passes() if is_shared else nullcontext() as passes:
            ids = actual.generate(prompts, params, core)
        assert passes or not is_shared
        assert ids == expected.generate(prompts, params, expected.core())


@contextmanager
def _counted_shared_passes() -> Iterator[list[int]]:
    """Let any common block be worth a pass; yields a list with an entry for each."""
    from octavo.kernels.triton import decode_attention
    from octavo.scheduler import prefix_sharers

    passes: list[int] = []
    attend = decode_attention.shared_attention

    def counted(*args: Any) -> Any:
        passes.append(1)
        return attend(*args)

    with (
        mock.patch.object(prefix_sharers, "MIN_SHARED_BLOCKS", 1),
        mock.patch.object(prefix_sharers, "MIN_TOKENS_SAVED", 1),
        mock.patch.object(decode_attention, "shared_attention", counted),
    ):
        yield passes


ENGINE_CASES: dict[str, Run] = {
    "engine-llama": partial(engine, family="llama", is_greedy=True),
    "engine-shared": partial(engine, family="llama", is_greedy=True, is_shared=True),
    "engine-gemma3": partial(engine, family="gemma3", is_greedy=False),
}
"""On CPU tensors only; the device has engine tests of its own."""


def check(name: str, device: torch.device, dtype: torch.dtype, seed: int) -> None:
    """Run one case; an AssertionError says what differs."""
    torch.manual_seed(seed)
    (CASES | ENGINE_CASES)[name](Trial(device, dtype, seed))


def dtypes_of(name: str) -> list[torch.dtype]:
    """What a case runs on: the bits would be the same on another where only float32 is named."""
    is_float32 = name in FLOAT32_CASES or name in ENGINE_CASES
    return [torch.float32] if is_float32 else [torch.float32, torch.bfloat16]


def report(
    names: list[str], check: Callable[[str, torch.device, torch.dtype, int], None] = check
) -> None:
    """Run cases on the CPU; print a line of JSON for each and each of its dtypes.

    The draws are new in every run, except in CI, where the same commit gets the same answer.
    """
    seed = 0 if "CI" in os.environ else int(torch.seed() % 2**31)
    for name in names:
        for dtype in dtypes_of(name):
            error = None
            try:
                check(name, torch.device("cpu"), dtype, seed)
            except Exception:
                error = f"seed {seed}, {dtype}\n{traceback.format_exc()}"
            print(json.dumps({"case": name, "dtype": str(dtype), "error": error}), flush=True)


if __name__ == "__main__":
    report(sys.argv[1:] or [*CASES, *ENGINE_CASES])

"""Every kernel in plain torch: the truth that other backends are compared with.

Knows the contract of :mod:`octavo.kernels.interface` and nothing of speed. Works on any device
and dtype; loops over sequences where that reads better.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.interface import (
    AttentionBatch,
    GGMLType,
    Linear,
    PackedTensor,
    SamplingBatch,
    WeightPart,
)
from octavo.kernels.philox import gumbel_noise


class DenseLinear:
    """A :class:`octavo.kernels.interface.Linear` whose weights are one dense matrix."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """``weight: [out_features, in_features]``; ``bias: [out_features]``, same dtype."""
        self.weight = weight
        self.bias = bias

    @classmethod
    def merge(
        cls, parts: Sequence[WeightPart], bias: Tensor | None, dtype: torch.dtype
    ) -> DenseLinear:
        """Concatenate the parts' outputs. Raises TypeError on a packed part."""
        dense: list[Tensor] = []
        for part in parts:
            if isinstance(part, PackedTensor):
                raise TypeError(
                    f"a packed {part.kind} matrix reached a backend that keeps none packed; "
                    "dequantise what is not in its packed_kinds first"
                )
            dense.append(part.to(dtype))
        # A single part that is already in this dtype is shared, not copied.
        weight = dense[0].contiguous() if len(dense) == 1 else torch.cat(dense)
        return cls(weight, None if bias is None else bias.to(dtype))

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def size_bytes(self) -> int:
        bias_bytes = 0 if self.bias is None else self.bias.numel() * self.bias.element_size()
        return self.weight.numel() * self.weight.element_size() + bias_bytes

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if x.dtype != weight.dtype:  # the CPU keeps activations in float32
            weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        return F.linear(x, weight, bias)

    def rows(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class ReferenceKernels:
    """A :class:`octavo.kernels.interface.Kernels` in plain torch."""

    name = "reference"
    is_batch_invariant = False
    packed_kinds: frozenset[GGMLType] = frozenset()

    def prepare_linear(
        self, parts: Sequence[WeightPart], bias: Tensor | None, dtype: torch.dtype
    ) -> Linear:
        return DenseLinear.merge(parts, bias, dtype)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
        return (wide * scale * weight).to(x.dtype)

    def add_rms_norm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
    ) -> Tensor:
        residual += x
        return self.rms_norm(residual, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (F.silu(gate) * up).to(gate_up.dtype)

    def gelu_tanh_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (F.gelu(gate, approximate="tanh") * up).to(gate_up.dtype)

    def rope_and_cache(
        self,
        qkv: Tensor,
        cos_sin: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: AttentionBatch,
        num_heads: int,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> Tensor:
        num_kv_heads, head_dim = key_cache.shape[1], key_cache.shape[3]
        heads = qkv.view(qkv.shape[0], -1, head_dim)
        q, k, v = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
        angles = cos_sin[batch.positions.long()]
        k = rotate(k if k_norm is None else self.rms_norm(k.float(), k_norm, eps), angles)
        write_pages(key_cache, k, batch.slots)
        write_pages(value_cache, v, batch.slots)
        q = rotate(q if q_norm is None else self.rms_norm(q.float(), q_norm, eps), angles)
        return q.to(qkv.dtype)

    def paged_attention(
        self,
        q: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int | None,
        qkv: Tensor | None = None,
    ) -> Tensor:
        # Tokens past the last sequence (padding) get zeros.
        out = torch.zeros_like(q)
        starts = batch.query_starts.tolist()
        for sequence, context_len in enumerate(batch.context_lens.tolist()):
            start, end = starts[sequence], starts[sequence + 1]
            if start == end or context_len == 0:
                continue
            table = batch.block_tables[sequence]
            out[start:end] = attend(
                q[start:end],
                read_pages(key_cache, table, context_len),
                read_pages(value_cache, table, context_len),
                scale,
                window,
            )
        return out

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        logits = logits.float()
        if batch.masks is not None and batch.mask_rows is not None:
            logits = mask_logits(logits, batch.masks, batch.mask_rows)
        greedy_ids = logits.argmax(dim=-1)
        if batch.all_greedy:
            return greedy_ids
        is_greedy = batch.temperature == 0
        scaled = logits / torch.where(is_greedy, 1.0, batch.temperature)[:, None]
        if batch.any_filter:
            scaled = filter_logits(scaled, batch.top_k, batch.top_p, batch.min_p)
        noise = gumbel_noise(batch.seeds, batch.positions, logits.shape[1])
        return torch.where(is_greedy, greedy_ids, (scaled.double() + noise).argmax(dim=-1))


def mask_logits(logits: Tensor, masks: Tensor, mask_rows: Tensor) -> Tensor:
    """Minus infinity wherever the row's mask leaves a token out; see :class:`SamplingBatch`."""
    token_ids = torch.arange(logits.shape[1], device=logits.device)
    words = masks[mask_rows.clamp_min(0).long()][:, token_ids // 32]
    is_left_out = (words >> (token_ids % 32).int()) & 1 == 0
    return logits.masked_fill(is_left_out & (mask_rows >= 0)[:, None], float("-inf"))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding in float32, half-split form.

    ``x: [T, heads, head_dim]``; ``angles: [T, rotary_dim]``, cosines, then sines.
    """
    rotary_dim = angles.shape[1]
    cos, sin = angles[:, None, :].float().chunk(2, dim=-1)
    first, second = x[..., :rotary_dim].float().chunk(2, dim=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([*rotated, x[..., rotary_dim:].float()], dim=-1)


def write_pages(cache: Tensor, x: Tensor, slots: Tensor) -> None:
    """Write ``x: [T, num_kv_heads, head_dim]`` to its slots; a slot of -1 is skipped."""
    block_size = cache.shape[2]
    kept = slots >= 0
    slots = slots[kept].long()
    cache[slots // block_size, :, slots % block_size] = x[kept].to(cache.dtype)


def read_pages(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """The first ``num_tokens`` tokens of one sequence: ``[num_tokens, num_kv_heads, head_dim]``."""
    num_kv_heads, block_size, head_dim = cache.shape[1:]
    num_blocks = -(-num_tokens // block_size)
    pages = cache[table[:num_blocks].long()].transpose(1, 2)
    return pages.reshape(-1, num_kv_heads, head_dim)[:num_tokens]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """Causal attention of one sequence's last tokens over all of its tokens, in float32.

    ``q: [num_new, num_heads, head_dim]``; ``k, v: [num_tokens, num_kv_heads, head_dim]``.
    """
    num_new, num_heads, _ = q.shape
    num_tokens, num_kv_heads, _ = k.shape
    group_size = num_heads // num_kv_heads
    k = k.float().repeat_interleave(group_size, dim=1)
    v = v.float().repeat_interleave(group_size, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    query_positions = torch.arange(num_tokens - num_new, num_tokens, device=q.device)[:, None]
    key_positions = torch.arange(num_tokens, device=q.device)[None, :]
    visible = key_positions <= query_positions
    if window is not None:
        visible &= query_positions - key_positions < window
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)


def filter_logits(logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Set to -inf what top-k, then top-p, then min-p drop; ``logits: [R, vocab]``, scaled.

    Tokens of equal logits share their fate, so that the result does not depend on a sort:
    top-k keeps what reaches the k-th largest logit; top-p keeps a token where the probability
    of all that are more likely is below ``top_p``; min-p keeps what reaches ``min_p`` times the
    largest probability.
    """
    vocab_size = logits.shape[1]
    descending = logits.sort(dim=-1, descending=True).values
    last = torch.where(top_k > 0, top_k.clamp(max=vocab_size), vocab_size).long()[:, None] - 1
    logits = logits.masked_fill(logits < descending.gather(1, last), float("-inf"))

    ordered, order = logits.double().sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    # The mass above a run of equal logits is the cumulative sum before the run's first.
    run_starts = torch.searchsorted(-ordered, -ordered, right=False)
    mass_above = (cumulative - probabilities).gather(1, run_starts)
    is_off = top_p[:, None] >= 1
    dropped = (mass_above >= top_p[:, None].double()) & ~is_off
    # The most likely token always stays, also at a top_p of 0.
    dropped &= ordered < ordered[:, :1]
    logits = logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), float("-inf"))

    largest = logits.max(dim=-1, keepdim=True).values.double()
    lowest_kept = largest + min_p[:, None].double().log()  # log(0) = -inf: off
    return logits.masked_fill(logits.double() < lowest_kept, float("-inf"))

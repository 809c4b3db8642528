"""QK-norm, rotary embedding and the KV cache write, in one launch."""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.interface import AttentionBatch
from octavo.kernels.triton.launch import Machine, ceil_div, next_power_of_two
from octavo.kernels.triton.overlap import wait_for_predecessors

_MAX_HEADS_PER_PROGRAM = 8


@triton.jit
def _normed_and_rotated(
    pointers,
    mask,
    norm,
    angles,
    eps,
    HAS_NORM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """Heads at ``pointers: [heads, 1]`` as float32: first half, second half, unrotated rest."""
    HALF: tl.constexpr = ROTARY_DIM // 2
    half = tl.arange(0, BLOCK_HALF)
    rest = ROTARY_DIM + tl.arange(0, BLOCK_REST)
    half_mask = half < HALF
    rest_mask = rest < HEAD_DIM
    tile_mask = mask & half_mask[None, :]
    firsts, seconds = half[None, :], HALF + half[None, :]
    x = tl.load(pointers + firsts, mask=tile_mask, other=0.0).to(tl.float32)
    y = tl.load(pointers + seconds, mask=tile_mask, other=0.0).to(tl.float32)
    z_mask = mask & rest_mask[None, :]
    z = tl.load(pointers + rest[None, :], mask=z_mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(x * x, axis=1) + tl.sum(y * y, axis=1) + tl.sum(z * z, axis=1)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        x *= scale * tl.load(norm + half, mask=half_mask, other=0.0)[None, :]
        y *= scale * tl.load(norm + HALF + half, mask=half_mask, other=0.0)[None, :]
        z *= scale * tl.load(norm + rest, mask=rest_mask, other=0.0)[None, :]
    cos = tl.load(angles + half, mask=half_mask, other=0.0)[None, :]
    sin = tl.load(angles + HALF + half, mask=half_mask, other=0.0)[None, :]
    return x * cos - y * sin, y * cos + x * sin, z


@triton.jit
def _stored(x, inverse_scale, pointer, IS_FP8: tl.constexpr):
    """``x`` in the dtype behind ``pointer``; FP8 (e4m3) saturates instead of becoming NaN."""
    if IS_FP8:
        x = tl.minimum(tl.maximum(x * inverse_scale, -448.0), 448.0)
    return x.to(pointer.dtype.element_ty)


@triton.jit(do_not_specialize=["keeps_keys"], do_not_specialize_on_alignment=["positions", "slots"])
def _rope_and_cache_program(
    qkv,
    cos_sin,
    key_cache,
    value_cache,
    positions,
    slots,
    q_norm,
    k_norm,
    qkv_stride,
    key_block_stride,
    value_block_stride,
    eps,
    inverse_key_scale,
    inverse_value_scale,
    keeps_keys,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_Q_NORM: tl.constexpr,
    HAS_K_NORM: tl.constexpr,
    IS_FP8: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program for ``BLOCK_HEADS`` heads of one token: of q, or of both k and v."""
    NUM_Q_TILES: tl.constexpr = (NUM_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    HALF: tl.constexpr = ROTARY_DIM // 2
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    row = qkv + token * qkv_stride
    angles = cos_sin + tl.load(positions + token).to(tl.int64) * ROTARY_DIM
    slot = tl.load(slots + token)
    # Only the product comes from the program just ahead.
    wait_for_predecessors(OVERLAP)
    half = tl.arange(0, BLOCK_HALF)[None, :]
    rest = ROTARY_DIM + tl.arange(0, BLOCK_REST)[None, :]
    if tile < NUM_Q_TILES:
        heads = (tile * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS))[:, None]
        mask = heads < NUM_HEADS
        pointers = row + heads * HEAD_DIM
        x, y, z = _normed_and_rotated(
            pointers, mask, q_norm, angles, eps,
            HAS_Q_NORM, HEAD_DIM, ROTARY_DIM, BLOCK_HALF, BLOCK_REST,
        )  # fmt: skip
        tile_mask = mask & (half < HALF)
        tl.store(pointers + half, x.to(qkv.dtype.element_ty), mask=tile_mask)
        tl.store(pointers + HALF + half, y.to(qkv.dtype.element_ty), mask=tile_mask)
        if ROTARY_DIM < HEAD_DIM:
            z_mask = mask & (rest < HEAD_DIM)
            tl.store(pointers + rest, z.to(qkv.dtype.element_ty), mask=z_mask)
    else:
        if slot >= 0:
            heads = ((tile - NUM_Q_TILES) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS))[:, None]
            mask = heads < NUM_KV_HEADS
            pointers = row + (NUM_HEADS + heads) * HEAD_DIM
            x, y, z = _normed_and_rotated(
                pointers, mask, k_norm, angles, eps,
                HAS_K_NORM, HEAD_DIM, ROTARY_DIM, BLOCK_HALF, BLOCK_REST,
            )  # fmt: skip
            block = (slot // BLOCK_SIZE).to(tl.int64)
            offsets = (heads * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM
            keys = key_cache + block * key_block_stride + offsets
            tile_mask = mask & (half < HALF)
            if keeps_keys != 0:
                # Prefill attention reads this step's keys from here.
                tl.store(pointers + half, x.to(qkv.dtype.element_ty), mask=tile_mask)
                tl.store(pointers + HALF + half, y.to(qkv.dtype.element_ty), mask=tile_mask)
                if ROTARY_DIM < HEAD_DIM:
                    z_mask = mask & (rest < HEAD_DIM)
                    tl.store(pointers + rest, z.to(qkv.dtype.element_ty), mask=z_mask)
            x = _stored(x, inverse_key_scale, key_cache, IS_FP8)
            y = _stored(y, inverse_key_scale, key_cache, IS_FP8)
            tl.store(keys + half, x, mask=tile_mask)
            tl.store(keys + HALF + half, y, mask=tile_mask)
            if ROTARY_DIM < HEAD_DIM:
                z = _stored(z, inverse_key_scale, key_cache, IS_FP8)
                tl.store(keys + rest, z, mask=mask & (rest < HEAD_DIM))
            columns = tl.arange(0, BLOCK_DIM)[None, :]
            v_mask = mask & (columns < HEAD_DIM)
            past_keys = NUM_KV_HEADS * HEAD_DIM + columns
            v = tl.load(pointers + past_keys, mask=v_mask, other=0.0).to(tl.float32)
            v = _stored(v, inverse_value_scale, value_cache, IS_FP8)
            values = value_cache + block * value_block_stride + offsets
            tl.store(values + columns, v, mask=v_mask)


def rope_and_cache(
    qkv: Tensor,
    cos_sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    batch: AttentionBatch,
    num_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    machine: Machine,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> Tensor:
    """See :meth:`octavo.kernels.interface.Kernels.rope_and_cache`.

    The returned q is a view of ``qkv``, rotated in place, as are the keys where several tokens of
    a sequence are computed. Caches of an FP8 dtype hold
    ``key / key_scale`` and ``value / value_scale``; the scales do nothing for other dtypes.
    """
    num_tokens = qkv.shape[0]
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    rotary_dim = cos_sin.shape[1]
    if num_tokens > 0:
        block_heads = min(_MAX_HEADS_PER_PROGRAM, next_power_of_two(num_kv_heads))
        num_tiles = ceil_div(num_heads, block_heads) + ceil_div(num_kv_heads, block_heads)
        block_dim = next_power_of_two(head_dim)
        _rope_and_cache_program[(num_tokens, num_tiles)](
            qkv,
            cos_sin,
            key_cache,
            value_cache,
            batch.positions,
            batch.slots,
            cos_sin if q_norm is None else q_norm,
            cos_sin if k_norm is None else k_norm,
            qkv.stride(0),
            key_cache.stride(0),
            value_cache.stride(0),
            eps,
            1.0 / key_scale,
            1.0 / value_scale,
            int(not batch.is_decode),
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HEAD_DIM=head_dim,
            ROTARY_DIM=rotary_dim,
            BLOCK_SIZE=block_size,
            HAS_Q_NORM=q_norm is not None,
            HAS_K_NORM=k_norm is not None,
            IS_FP8=key_cache.element_size() == 1,
            BLOCK_HEADS=block_heads,
            BLOCK_HALF=next_power_of_two(rotary_dim // 2),
            BLOCK_REST=next_power_of_two(head_dim - rotary_dim),
            BLOCK_DIM=block_dim,
            num_warps=max(1, min(4, block_heads * block_dim // 256)),
            **machine.launch_options,
        )
    return qkv[:, : num_heads * head_dim].view(num_tokens, num_heads, head_dim)

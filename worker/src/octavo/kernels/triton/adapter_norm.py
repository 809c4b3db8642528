"""LoRA's second half by the norm that reads the product: for few tokens of not too wide a model.

An expand and a norm after it are two short programs, each of which waits for the one before. Here
one program has a token's B at hand before the product is there.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.adapter_operands import Operands, Shrunk, locate
from octavo.kernels.triton.launch import next_power_of_two
from octavo.kernels.triton.overlap import wait_for_predecessors

_CHUNK = 8
"""Columns of B at a time: 16 bytes of a row."""
_MAX_NUMBERS = 1 << 16
"""Of B, for one program."""
_COLUMNS_OF_WARP = 256
_MAX_TOKENS = 256
"""Each token's program reads B for itself."""


@triton.jit
def _columns_of_b(matrix, rank, first, columns, SIZE: tl.constexpr, CHUNK: tl.constexpr):
    """``[BLOCK, CHUNK]`` from column ``first`` of B on; 0 past the rank."""
    ranks = first + tl.arange(0, CHUNK)
    return tl.load(
        matrix + columns[:, None] * rank + ranks[None, :],
        mask=(columns < SIZE)[:, None] & (ranks < rank)[None, :],
        other=0.0,
    )


@triton.jit
def _times(chunk, shrunk, rank, first, CHUNK: tl.constexpr):
    """What a chunk of B adds for one token, ``[BLOCK], float32``."""
    ranks = first + tl.arange(0, CHUNK)
    inner = tl.load(shrunk + ranks, mask=ranks < rank, other=0.0)
    return tl.sum(chunk.to(tl.float32) * inner.to(tl.float32)[None, :], axis=1)


@triton.jit(do_not_specialize=["index", "num_tokens"])
def _expand_norm_program(
    y,
    residual,
    weight,
    out,
    b,
    table,
    order,
    slots,
    shrunk,
    index,
    num_tokens,
    slot_stride,
    shrunk_stride,
    y_stride,
    residual_stride,
    eps,
    MAX_RANK: tl.constexpr,
    SLOT_RANK: tl.constexpr,
    NUM_PROJECTIONS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    EACH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """``residual += y + ...``, and the norm of that, for ``EACH`` tokens that follow each other by
    slot."""
    columns = tl.arange(0, BLOCK)
    mask = columns < SIZE
    factors = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    place = tl.program_id(0).to(tl.int64) * EACH
    token = place
    if EACH > 1:
        token = tl.load(order + place)
    slot = tl.load(slots + token).to(tl.int64)
    offset, rank = locate(table, slot, index, NUM_PROJECTIONS)
    matrix = b + slot * slot_stride + offset
    # Adapters are there long before; with a chunk comes what lies beside it.
    chunk = _columns_of_b(matrix, rank, 0, columns, SIZE, CHUNK)
    wait_for_predecessors(OVERLAP)
    for step in tl.static_range(EACH):
        is_token = place + step < num_tokens
        if step > 0:
            token = tl.load(order + place + step, mask=is_token, other=0)
            slot = tl.load(slots + token, mask=is_token, other=-1).to(tl.int64)
            offset, rank = locate(table, slot, index, NUM_PROJECTIONS)
            matrix = b + slot * slot_stride + offset
            chunk = _columns_of_b(matrix, rank, 0, columns, SIZE, CHUNK)
        there = mask & is_token
        inner = shrunk + token * shrunk_stride + slot * SLOT_RANK
        values = tl.load(y + token * y_stride + columns, mask=there, other=0.0).to(tl.float32)
        pointers = residual + token * residual_stride + columns
        values += tl.load(pointers, mask=there, other=0.0).to(tl.float32)
        values += _times(chunk, inner, rank, 0, CHUNK)
        for first in tl.static_range(CHUNK, MAX_RANK, CHUNK):
            chunk = _columns_of_b(matrix, rank, first, columns, SIZE, CHUNK)
            values += _times(chunk, inner, rank, first, CHUNK)
        # Normalise what is stored, rounding included: the next layer adds to that.
        rounded = values.to(residual.dtype.element_ty)
        tl.store(pointers, rounded, mask=there)
        values = rounded.to(tl.float32)
        scale = tl.rsqrt(tl.sum(values * values, axis=0) / SIZE + eps)
        result = (values * scale * factors).to(out.dtype.element_ty)
        tl.store(out + token * SIZE + columns, result, mask=there)


def can_expand(shrunk: Shrunk, operands: Operands) -> bool:
    """Whether :func:`expand_norm` is for this."""
    numbers = next_power_of_two(sum(operands.projection.out_features)) * operands.storage_rank
    is_by_token = shrunk.num_splits == 0
    return is_by_token and numbers <= _MAX_NUMBERS and operands.num_tokens <= _MAX_TOKENS


def expand_norm(
    y: Tensor,
    shrunk: Shrunk,
    operands: Operands,
    slots: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
) -> Tensor:
    """``residual += y + B of what was shrunk``, in place, then its RMSNorm: ``[T, size]``.

    ``y, residual: [T, size]``, rows contiguous; ``slots: [T], int32``.
    """
    num_tokens, size = y.shape
    out = torch.empty((num_tokens, size), dtype=y.dtype, device=y.device)
    block = next_power_of_two(size)
    each = 1 if num_tokens <= operands.num_multiprocessors else 2
    stack = operands.stack
    _expand_norm_program[(triton.cdiv(num_tokens, each),)](
        y,
        residual,
        weight,
        out,
        stack.b,
        stack.table,
        operands.tiles.order,
        slots,
        shrunk.values,
        operands.index,
        num_tokens,
        stack.b.stride(0),
        shrunk.values.stride(0),
        y.stride(0),
        residual.stride(0),
        eps,
        MAX_RANK=operands.storage_rank,
        SLOT_RANK=operands.slot_rank,
        NUM_PROJECTIONS=len(stack.projections),
        SIZE=size,
        BLOCK=block,
        CHUNK=_CHUNK,
        EACH=each,
        num_warps=max(1, min(16, block // _COLUMNS_OF_WARP)),
        **operands.launch_options,
    )
    return out

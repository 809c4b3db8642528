"""Pieces that both attention kernels are made of: reading tiles of pages, and their products."""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate_tokens(
    table,
    tokens,
    mask,
    kv_head,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Blocks of ``tokens: [n]`` (int64), and offsets in them. Masked table entries are unread."""
    if MASKED:
        blocks = tl.load(table + tokens // BLOCK_SIZE, mask=mask, other=0)
    else:
        blocks = tl.load(table + tokens // BLOCK_SIZE)
    return blocks.to(tl.int64), (kv_head * BLOCK_SIZE + tokens % BLOCK_SIZE) * HEAD_DIM


@triton.jit
def load_rows(
    pointers,
    mask,
    dims,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    """A tile ``[n, BLOCK_DIM]`` of rows that start at ``pointers: [n]``; zeros where masked.

    Rows that hold no token must be read as zeros, not only be given no weight: whatever lies
    there may be NaN.
    """
    if HEAD_DIM < BLOCK_DIM:
        dims_mask = (dims < HEAD_DIM)[None, :]
        tile_mask = mask[:, None] & dims_mask if MASKED else dims_mask
        tile = tl.load(pointers[:, None] + dims[None, :], mask=tile_mask, other=0.0)
    elif MASKED:
        tile = tl.load(pointers[:, None] + dims[None, :], mask=mask[:, None], other=0.0)
    else:
        tile = tl.load(pointers[:, None] + dims[None, :])
    return tile


@triton.jit
def multiply(a, b, INTERPRETED: tl.constexpr):
    """``a @ b`` accumulated in float32; float32 operands keep all their bits."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def multiply_add(a, b, sums, INTERPRETED: tl.constexpr):
    """``sums + a @ b``, as :func:`multiply`; ``sums`` are float32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")

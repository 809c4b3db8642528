"""Matrix products that sum in one order, whatever the number of rows.

A result element is one chain of additions over the inputs from first to last: the inputs are
not split over workers, and the matrix instruction steps over 16 of them at a time in every tile
shape. So a row's bits depend on that row and the weights alone, which a library does not
promise: it chooses splits and instructions by the number of rows.

Source: He et al., "Defeating nondeterminism in LLM inference" (2025), for the idea.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.launch import INTERPRETED, ceil_div
from octavo.kernels.triton.pages import multiply

_MANY_ROWS = 256
"""From here on arithmetic binds, and larger tiles pay."""
_FEW_OUTPUTS = 8192
"""Up to here wide tiles would leave multiprocessors idle."""
_ROW_TILES_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class ProductConfig:
    """The shape of a tile; none of it may change the order of a sum."""

    block_rows: int
    block_outputs: int
    block_inputs: int
    num_warps: int
    num_stages: int


def product_config(num_rows: int, num_outputs: int, element_bytes: int) -> ProductConfig:
    """The shape for a product. Half-precision ones share ``block_inputs``, and so the order."""
    if element_bytes == 4:  # no matrix instruction keeps float32's bits
        return ProductConfig(32, 32, 32, 4, 2)
    if num_rows > _MANY_ROWS and not INTERPRETED:
        return ProductConfig(128, 128, 64, 8, 3)
    # Four warps multiply 64 rows at once and no fewer.
    return ProductConfig(64, 32 if num_outputs <= _FEW_OUTPUTS else 128, 64, 4, 4)


@triton.jit(do_not_specialize=["num_rows"])
def _product_program(
    x,
    weight,
    bias,
    out,
    num_rows,
    x_stride,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    ROW_TILES_TOGETHER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One program for one tile of the result; a few row tiles share a fetch of weights."""
    program = tl.program_id(0)
    num_row_tiles = tl.cdiv(num_rows, BLOCK_ROWS)
    num_output_tiles: tl.constexpr = (NUM_OUTPUTS + BLOCK_OUTPUTS - 1) // BLOCK_OUTPUTS
    group = program // (ROW_TILES_TOGETHER * num_output_tiles)
    first_tile = group * ROW_TILES_TOGETHER
    group_size = tl.minimum(num_row_tiles - first_tile, ROW_TILES_TOGETHER)
    place = program % (ROW_TILES_TOGETHER * num_output_tiles)
    row_tile = first_tile + place % group_size
    output_tile = place // group_size
    rows = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    outputs = output_tile * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    lanes = tl.arange(0, BLOCK_INPUTS)
    row_mask = rows < num_rows
    output_mask = outputs < NUM_OUTPUTS
    x_rows = x + rows.to(tl.int64)[:, None] * x_stride
    weight_rows = weight + outputs.to(tl.int64)[:, None] * NUM_INPUTS
    total = tl.zeros([BLOCK_ROWS, BLOCK_OUTPUTS], tl.float32)
    for first in range(0, NUM_INPUTS, BLOCK_INPUTS):
        inputs = first + lanes
        x_mask = row_mask[:, None]
        weight_mask = output_mask[:, None]
        if NUM_INPUTS % BLOCK_INPUTS != 0:
            x_mask = x_mask & (inputs < NUM_INPUTS)[None, :]
            weight_mask = weight_mask & (inputs < NUM_INPUTS)[None, :]
        values = tl.load(x_rows + inputs[None, :], mask=x_mask, other=0.0)
        factors = tl.load(weight_rows + inputs[None, :], mask=weight_mask, other=0.0)
        total += multiply(values, tl.trans(factors), INTERPRETED)
    if HAS_BIAS:
        total += tl.load(bias + outputs, mask=output_mask, other=0.0).to(tl.float32)[None, :]
    out_rows = out + rows.to(tl.int64)[:, None] * NUM_OUTPUTS
    tl.store(
        out_rows + outputs[None, :],
        total.to(out.dtype.element_ty),
        mask=row_mask[:, None] & output_mask[None, :],
    )


def fixed_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, config: ProductConfig | None = None
) -> Tensor:
    """``x: [num_rows, num_inputs]``, rows contiguous; ``weight: [num_outputs, num_inputs]``,
    contiguous; ``bias: [num_outputs]``, all of one dtype → ``[num_rows, num_outputs]``."""
    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0]
    out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out
    config = config or product_config(num_rows, num_outputs, x.element_size())
    num_tiles = ceil_div(num_rows, config.block_rows) * ceil_div(num_outputs, config.block_outputs)
    _product_program[(num_tiles,)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        num_rows,
        x.stride(0),
        NUM_INPUTS=num_inputs,
        NUM_OUTPUTS=num_outputs,
        BLOCK_ROWS=config.block_rows,
        BLOCK_OUTPUTS=config.block_outputs,
        BLOCK_INPUTS=config.block_inputs,
        ROW_TILES_TOGETHER=_ROW_TILES_TOGETHER,
        HAS_BIAS=bias is not None,
        INTERPRETED=INTERPRETED,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out

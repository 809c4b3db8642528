"""RMSNorm, alone or with the residual addition before it."""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.launch import Machine, next_power_of_two
from octavo.kernels.triton.overlap import wait_for_predecessors


@triton.jit
def _rms_norm_program(
    x,
    residual,
    weight,
    out,
    x_stride,
    residual_stride,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program a row; the whole row stays in registers."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < SIZE
    factors = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    pointers = residual + row * residual_stride + columns
    before = tl.zeros([BLOCK], tl.float32)
    if HAS_RESIDUAL:
        # The program just ahead brings x; the residual was written by the norm before it.
        before = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    wait_for_predecessors(OVERLAP)
    values = tl.load(x + row * x_stride + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        values += before
        # Normalise what is stored, rounding included: the next layer adds to that.
        rounded = values.to(residual.dtype.element_ty)
        tl.store(pointers, rounded, mask=mask)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / SIZE + eps)
    result = (values * scale * factors).to(out.dtype.element_ty)
    tl.store(out + row * SIZE + columns, result, mask=mask)


def rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    machine: Machine,
) -> Tensor:
    """``x, residual: [..., size]``, last dimension contiguous; ``residual += x`` in place."""
    size = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x.view(-1, size)
    sums = rows if residual is None else residual.view(-1, size)
    if rows.shape[0] == 0:
        return out
    block = next_power_of_two(size)
    _rms_norm_program[(rows.shape[0],)](
        rows,
        sums,
        weight,
        out,
        rows.stride(0),
        sums.stride(0),
        eps,
        SIZE=size,
        BLOCK=block,
        HAS_RESIDUAL=residual is not None,
        num_warps=max(1, min(16, block // 512)),
        **machine.launch_options,
    )
    return out

"""Gated activations: ``activation(gate) * up`` over a merged gate-up product."""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.launch import INTERPRETED, Machine, ceil_div, next_power_of_two
from octavo.kernels.triton.overlap import wait_for_predecessors

_MAX_BLOCK = 1024


@triton.jit
def _sigmoid(x, INTERPRETED: tl.constexpr):
    """Of float32, to about two units in the last place; as two instructions of the special units
    and two others, without the care for numbers that sigmoid never meets."""
    if INTERPRETED:
        return 1.0 / (1.0 + tl.exp(-tl.maximum(x, -80.0)))
    return tl.inline_asm_elementwise(
        "{ .reg .f32 t; ex2.approx.ftz.f32 t, $1; add.f32 t, t, 0f3F800000; "
        "rcp.approx.ftz.f32 $0, t; }",
        "=f,f",
        [x * -1.4426950408889634],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def activated(gate, IS_SILU: tl.constexpr, INTERPRETED: tl.constexpr):
    """SiLU, or else GELU in its tanh form, of float32."""
    argument = gate
    if not IS_SILU:
        # gelu_tanh(x) = x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3))
        argument = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    return gate * _sigmoid(argument, INTERPRETED)


@triton.jit
def _gated_program(
    gate_up,
    out,
    stride,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_SILU: tl.constexpr,
    INTERPRETED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program for ``BLOCK`` columns of one row."""
    wait_for_predecessors(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < SIZE
    pointers = gate_up + row * stride + columns
    gate = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(pointers + SIZE, mask=mask, other=0.0).to(tl.float32)
    result = (activated(gate, IS_SILU, INTERPRETED) * up).to(out.dtype.element_ty)
    tl.store(out + row * SIZE + columns, result, mask=mask)


def gated(gate_up: Tensor, is_silu: bool, machine: Machine) -> Tensor:
    """``gate_up: [T, 2 * size]``, rows contiguous → ``[T, size]``; SiLU, or else GELU (tanh)."""
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if num_tokens == 0:
        return out
    block = min(_MAX_BLOCK, next_power_of_two(size))
    _gated_program[(num_tokens, ceil_div(size, block))](
        gate_up,
        out,
        gate_up.stride(0),
        SIZE=size,
        BLOCK=block,
        IS_SILU=is_silu,
        INTERPRETED=INTERPRETED,
        num_warps=4,
        **machine.launch_options,
    )
    return out

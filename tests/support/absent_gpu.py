"""Compile Octavo's Triton programs without a GPU, as their launch functions ask for it.

Launches are turned into compilations (Triton's own warm-up path) under a driver that names a
GPU and owns none, so the specialisation, the options and the tile sizes are those of
production. Run as a program, it compiles the shapes of ``CASES`` named on the command line for
the compute capability that comes first there (90: Hopper), and prints one JSON line for each
compiled program: registers, stack, shared memory, instructions.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from octavo.kernels.adapters import AdapterStack, AdapterUse, Projection
from octavo.kernels.interface import AttentionBatch, SamplingBatch, SharedPrefix
from octavo.kernels.select import rows_for_adapters
from octavo.kernels.triton import TritonKernels, rope_cache
from octavo.kernels.triton.adapters import TritonAdapters
from octavo.kernels.triton.decode_attention import decode_attention
from octavo.kernels.triton.fixed_product import fixed_product
from octavo.kernels.triton.launch import Machine
from octavo.kernels.triton.prefill_attention import prefill_attention

_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_NUM_MULTIPROCESSORS = 132


class _AbsentGPU:
    """As much of a Triton driver as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", capability(), 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling() -> Iterator[dict[str, Any]]:
    """Turn launches into compilations; yields the compiled programs by hash."""
    compiled: dict[str, Any] = {}
    run = JITFunction.run

    def warm_up(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        program = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.setdefault(program.hash, program)
        return program

    JITFunction.run = warm_up
    # Stays set: there may be no driver to go back to.
    driver.set_active(_AbsentGPU())
    try:
        yield compiled
    finally:
        JITFunction.run = run


_known: dict[str, dict[str, Any]] = {}


def resources(program: Any) -> dict[str, Any]:
    """What one compiled program takes and what it is made of."""
    if program.hash not in _known:
        _known[program.hash] = _measure(program)
    return _known[program.hash]


def _measure(program: Any) -> dict[str, Any]:
    """What the assembler took, and the instructions it was given.

    Those that are counted stand for a machine instruction each (HGMMA, HMMA, LDGSTS, UTMALDG,
    LDG.128); to see that in the machine code takes a disassembler that needs half a second to
    start. A program without a stack has no register that was spilled.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        command = [str(_CUOBJDUMP), "-res-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ptx = program.asm["ptx"]
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "capability": capability(),
        "name": program.metadata.name,
        "registers": numbers["REG"],
        "stack_bytes": numbers["STACK"],
        "shared_bytes": program.metadata.shared,
        "num_warps": program.metadata.num_warps,
        "wgmma": len(re.findall(r"\bwgmma\.mma_async", ptx)),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "async_copies": len(re.findall(r"\bcp\.async\.c[ag]\.", ptx)),
        "tile_copies": len(re.findall(r"\bcp\.async\.bulk\.tensor", ptx)),
        "wide_loads": len(re.findall(r"\bld\.global[.\w:]*\.v(4\.b32|2\.b64)", ptx)),
        "exponentials": len(re.findall(r"\bex2\.", ptx)),
        "subtractions": len(re.findall(r"\bsub\.f32", ptx)),
        "accurate_log": "lg2.approx" not in ptx,
    }


def _machine() -> Machine:
    is_hopper = capability() == 90
    return Machine.of(torch.device("cpu"), _NUM_MULTIPROCESSORS, is_hopper, is_hopper)


def _kernels() -> TritonKernels:
    return TritonKernels(torch.device("cpu"), _machine())


def _ints(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def _batch(num_decodes: int, query_lens: list[int], max_context_len: int) -> AttentionBatch:
    num_sequences = num_decodes + len(query_lens)
    num_tokens = num_decodes + sum(query_lens)
    return AttentionBatch(
        query_starts=_ints(num_sequences + 1),
        context_lens=_ints(num_sequences),
        block_tables=_ints(num_sequences, -(-max_context_len // 16)),
        positions=_ints(num_tokens),
        slots=_ints(num_tokens),
        num_decodes=num_decodes,
        max_query_len=max([1, *query_lens]),
        max_context_len=max_context_len,
    )


def _cache(num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(1, num_kv_heads, 16, head_dim, dtype=dtype)


def decode(
    dtype: torch.dtype,
    head_dim: int,
    group_size: int,
    window: int | None,
    num_sequences: int = 64,
    cache_dtype: torch.dtype | None = None,
    is_shared: bool = False,
) -> None:
    machine = _machine()
    q = torch.empty(num_sequences, 4 * group_size, head_dim, dtype=dtype)
    cache = _cache(4, head_dim, cache_dtype or dtype)
    batch = _batch(num_sequences, [], 8192)
    if is_shared:
        shared = SharedPrefix(_ints(num_sequences), torch.zeros((), dtype=torch.int64))
        batch = replace(batch, shared=shared)
    decode_attention(q, cache, cache, torch.empty_like(q), batch, 0.1, window, machine)


def prefill(
    dtype: torch.dtype,
    head_dim: int,
    group_size: int,
    window: int | None,
    query_lens: tuple[int, ...] = (512, 7),
    num_decodes: int = 0,
    cache_dtype: torch.dtype | None = None,
    has_product: bool = False,
) -> None:
    batch = _batch(num_decodes, list(query_lens), 8192)
    num_tokens = num_decodes + sum(query_lens)
    product = torch.empty(num_tokens, (4 * group_size + 8) * head_dim, dtype=dtype)
    q = product.view(num_tokens, -1, head_dim)[:, : 4 * group_size]
    out = torch.empty(q.shape, dtype=dtype)
    cache = _cache(4, head_dim, cache_dtype or dtype)
    qkv = product if has_product else None
    prefill_attention(q, cache, cache, out, batch, 0.1, window, _machine(), qkv=qkv)


def rope(
    dtype: torch.dtype,
    head_dim: int,
    rotary_dim: int,
    has_norm: bool,
    num_tokens: int = 5,
    cache_dtype: torch.dtype | None = None,
) -> None:
    num_heads, num_kv_heads = 32, 8
    qkv = torch.empty(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    norm = torch.empty(head_dim) if has_norm else None
    cache = _cache(num_kv_heads, head_dim, cache_dtype or dtype)
    batch = _batch(0, [num_tokens], 64)
    angles = torch.empty(64, rotary_dim)
    rope_cache.rope_and_cache(
        qkv, angles, cache, cache, batch, num_heads, norm, norm, 1e-6, _machine(), 0.5, 0.5
    )


def norm(
    dtype: torch.dtype,
    size: int,
    has_residual: bool,
    num_tokens: int = 5,
) -> None:
    kernels = _kernels()
    x, weight = torch.empty(num_tokens, size, dtype=dtype), torch.empty(size)
    if has_residual:
        kernels.add_rms_norm(x, torch.empty_like(x), weight, 1e-6)
    else:
        kernels.rms_norm(x, weight, 1e-6)


def linear(num_tokens: int, shape: tuple[int, int] = (4096, 4096)) -> None:
    product = _kernels().prepare_linear([torch.empty(shape, dtype=BF16)], None, BF16)
    product(torch.empty(num_tokens, shape[1], dtype=BF16))


def activation(dtype: torch.dtype, size: int, num_tokens: int = 5) -> None:
    kernels = _kernels()
    gate_up = torch.empty(num_tokens, 2 * size, dtype=dtype)
    kernels.silu_mul(gate_up)
    kernels.gelu_tanh_mul(gate_up)


def product(dtype: torch.dtype, num_inputs: int, num_outputs: int, num_rows: int) -> None:
    x, weight = torch.empty(num_rows, num_inputs), torch.empty(num_outputs, num_inputs)
    fixed_product(x.to(dtype), weight.to(dtype), torch.empty(num_outputs, dtype=dtype))


def sampling(vocab_size: int, all_greedy: bool, any_filter: bool, num_rows: int = 5) -> None:
    kernels = _kernels()
    floats = torch.empty(num_rows)
    batch = SamplingBatch(
        temperature=floats,
        top_k=_ints(num_rows),
        top_p=floats,
        min_p=floats,
        seeds=torch.empty(num_rows, dtype=torch.int64),
        positions=_ints(num_rows),
        all_greedy=all_greedy,
        any_filter=any_filter,
    )
    kernels.sample(torch.empty(num_rows, vocab_size), batch)


def adapters(
    dtype: torch.dtype, max_rank: int, num_slots: int, num_tokens: int, size: int = 4096
) -> None:
    shapes = [
        Projection(0, ("q", "k", "v"), size, (size, size // 4, size // 4)),
        Projection(0, ("gate", "up"), size, (size, size)),
        Projection(0, ("down",), size, (size,)),
    ]
    # Without memory: what the library would multiply is not multiplied.
    device = torch.device("meta")
    linears = [
        _kernels().prepare_linear(
            [torch.empty(sum(shape.out_features), size, dtype=dtype, device=device)], None, dtype
        )
        for shape in shapes
    ]
    stack = AdapterStack.allocate(
        shapes,
        num_slots,
        max_rank,
        dtype,
        device,
        lambda index, num_rows: rows_for_adapters(linears[index], num_rows),
    )
    x = torch.empty(num_tokens, size, dtype=dtype, device=device)
    for use in (AdapterUse.MANY, AdapterUse.FEW):
        step = TritonAdapters(stack, _kernels()).step(_ints(num_tokens), use)
        for index, (projection, linear) in enumerate(zip(shapes, linears, strict=True)):
            if len(projection.names) == 2:
                step.project_gated(index, linear, x, True)
            else:
                step.project(index, linear, x)


BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn

Case = Callable[[], None]

CASES: dict[str, list[Case]] = {
    "norm": [
        partial(norm, BF16, 4096, False),
        partial(norm, BF16, 1024, True),
        partial(norm, FP32, 576, True),
    ],
    "activation": [partial(activation, BF16, 14336)],
    "linear": [partial(linear, num_tokens) for num_tokens in [1, 2, 32, 64]],
    "rope": [
        partial(rope, BF16, 128, 128, True),
        partial(rope, BF16, 80, 32, False),
        partial(rope, FP32, 96, 96, True),
        partial(rope, BF16, 256, 256, True),
        partial(rope, BF16, 128, 128, False, cache_dtype=FP8),
    ],
    "decode": [
        *[partial(decode, BF16, head_dim, 4, None) for head_dim in [64, 80, 128, 256]],
        partial(decode, BF16, 96, 16, 512),
        partial(decode, FP16, 128, 7, None),
        partial(decode, FP32, 64, 3, None),
        partial(decode, FP32, 256, 4, 512),
        partial(decode, BF16, 128, 1, None, cache_dtype=FP8),
    ],
    "shared": [
        *[partial(decode, BF16, head_dim, 4, None, is_shared=True) for head_dim in [64, 128, 256]],
        partial(decode, BF16, 128, 4, None, 8, is_shared=True),
    ],
    "prefill": [
        *[partial(prefill, BF16, head_dim, 4, None) for head_dim in [64, 80, 128, 256]],
        partial(prefill, BF16, 96, 16, 512),
        partial(prefill, FP16, 128, 7, None),
        partial(prefill, FP32, 64, 3, None),
        partial(prefill, FP32, 256, 4, 512),
        partial(prefill, BF16, 128, 1, None, cache_dtype=FP8),
    ],
    "prefill-new": [
        *[
            partial(prefill, BF16, head_dim, 4, None, has_product=True)
            for head_dim in [64, 80, 128, 256]
        ],
        partial(prefill, FP16, 128, 7, None, has_product=True),
    ],
    "product": [
        partial(product, BF16, 4096, 6144, 1),
        partial(product, BF16, 4096, 28672, 64),
        partial(product, BF16, 4096, 6144, 2048),
        partial(product, FP32, 576, 1536, 64),
    ],
    "sampling": [
        partial(sampling, 151936, True, False),
        partial(sampling, 128256, False, False),
        partial(sampling, 128256, False, True),
    ],
    "adapters": [
        *[partial(adapters, BF16, 16, 8, tokens) for tokens in [1, 256, 8192]],
        *[partial(adapters, BF16, 16, 64, tokens) for tokens in [64, 4096]],
        partial(adapters, BF16, 64, 64, 256),
        partial(adapters, BF16, 256, 4, 256),
    ],
    # The largest tiles, for cards with less shared memory.
    "attention": [
        *[partial(decode, BF16, head_dim, 4, None) for head_dim in [128, 256]],
        *[partial(prefill, BF16, head_dim, 4, None) for head_dim in [64, 128, 256]],
        partial(prefill, FP32, 256, 4, 512),
    ],
    # Whatever the batch, one program each: nothing compiles while serving.
    "variants": [
        *[partial(decode, BF16, 128, 4, None, rows) for rows in [1, 3, 16, 64, 256, 257]],
        *[
            partial(prefill, BF16, 128, 4, None, query_lens, num_decodes)
            for query_lens, num_decodes in [
                ((1,), 0), ((16,), 0), ((4096,), 0), ((5, 64, 1), 3), ((2048,) * 4, 16)
            ]
        ],
        *[partial(rope, BF16, 128, 128, True, tokens) for tokens in [1, 2, 16, 33, 8192]],
        *[partial(norm, BF16, 4096, True, tokens) for tokens in [1, 2, 16, 33, 8192]],
        *[partial(linear, tokens) for tokens in [1, 2, 7, 16]],
        *[partial(activation, BF16, 14336, tokens) for tokens in [1, 2, 16, 33, 8192]],
        *[partial(sampling, 128256, False, False, rows) for rows in [1, 2, 16, 33, 256]],
        *[partial(sampling, 128256, False, True, rows) for rows in [1, 2, 16, 33, 256]],
    ],
}  # fmt: skip


def capability() -> int:
    return int(sys.argv[1]) if len(sys.argv) > 1 else 90


def main(names: list[str]) -> None:
    for name in names or CASES:
        with compiling() as compiled:
            for case in CASES[name]:
                case()
        for program in compiled.values():
            print(json.dumps({"case": name, **resources(program)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[2:])

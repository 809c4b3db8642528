"""Time every Triton kernel on the shapes of two models, beside what the card can do.

    PYTHONPATH=worker/src python benchmarks/kernels.py [--only decode prefill] [--sweep decode]

Each case is captured many times in one CUDA graph, over buffers that together exceed the L2 cache,
and the graph is replayed: the time of a call is the median over replays, so launch gaps are the
graph's own. ``spread`` is the distance of the 90th from the 10th percentile, in per cent of the
median. Rates count each byte and operation once (what the algorithm needs, not what the kernel
does), and stand beside two ceilings measured first: a device-to-device copy (bytes read plus
written) and an 8192 x 8192 x 8192 bf16 matrix product.

Prints one JSON line per figure and a table at the end, and appends the lines to ``--output``.
One long file on purpose: it is carried to a machine with a GPU and needs nothing beside octavo.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from triton.runtime.errors import TritonError

from octavo.kernels.adapters import AdapterStack, AdapterStep, Projection
from octavo.kernels.interface import AttentionBatch, Linear, SamplingBatch
from octavo.kernels.select import rows_for_adapters
from octavo.kernels.triton import TritonKernels
from octavo.kernels.triton.adapter_tiles import make_tiles
from octavo.kernels.triton.adapters import TritonAdapters
from octavo.kernels.triton.decode_attention import DecodeConfig, decode_attention
from octavo.kernels.triton.launch import Machine
from octavo.kernels.triton.prefill_attention import PrefillConfig, prefill_attention

BF16 = torch.bfloat16
GROUPS = [
    "norm", "activation", "rope", "decode", "prefill", "sdpa", "sampling", "linear", "lora",
]  # fmt: skip
BLOCK_SIZE = 16
MAX_CONTEXT_LEN = 8192
_MAX_SETS = 64
_NUM_REPLAYS = 20
_WARM_UP_REPLAYS = 3
_MIN_CALLS = 24
_MAX_GRAPH_MS = 60.0


@dataclass(frozen=True)
class ModelShape:
    """What the kernels see of a model."""

    name: str
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    has_qk_norm: bool


MODELS = [
    ModelShape("8b", 4096, 14336, 32, 8, 128, 128256, False),
    ModelShape("0.6b", 1024, 3072, 16, 8, 128, 151936, True),
]


@dataclass(frozen=True)
class Case:
    """One figure: a function that makes one call's inputs and returns the call."""

    kernel: str
    model: str
    shape: str
    make: Callable[[], Callable[[], object]]
    num_bytes: float
    """Bytes a call must read and write."""
    num_operations: float = 0.0
    """Floating-point operations a call must do; 0 where bytes alone matter."""


Attend = Callable[..., object]
"""Attention over ``(q, key_cache, value_cache, out, batch)``."""


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call."""

    median_us: float
    spread_percent: float


# Timing


def time_case(make: Callable[[], Callable[[], object]], num_bytes: float) -> Timing:
    """Time calls over as many input sets as it takes to exceed the L2 cache four times."""
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    num_sets = min(_MAX_SETS, max(1, int(4 * l2_bytes / max(num_bytes, 1)) + 1))
    calls = [make() for _ in range(num_sets)]
    call_ms = _time_eagerly(calls)
    num_calls = min(max(_MIN_CALLS, num_sets), max(num_sets, int(_MAX_GRAPH_MS / call_ms) + 1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(num_calls):
            calls[index % num_sets]()
    times = [_replay_ms(graph) for _ in range(_WARM_UP_REPLAYS + _NUM_REPLAYS)]
    times = sorted(times[_WARM_UP_REPLAYS:])
    median = statistics.median(times)
    tenth = len(times) // 10
    spread = 100 * (times[-1 - tenth] - times[tenth]) / median
    return Timing(1000 * median / num_calls, spread)


def _time_eagerly(calls: Sequence[Callable[[], object]]) -> float:
    """Milliseconds of a call, roughly; also compiles and warms up every set."""
    for call in calls:
        call()
    start, end = _event(), _event()
    torch.cuda.synchronize()
    start.record()
    calls[0]()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _replay_ms(graph: torch.cuda.CUDAGraph) -> float:
    start, end = _event(), _event()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _randn(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, dtype=dtype, device="cuda")


def ceilings() -> tuple[float, float]:
    """The card's copy rate in GB/s (read plus written) and its bf16 product rate in TFLOP/s."""
    num_bytes = 1 << 30

    def make_copy() -> Callable[[], object]:
        source, target = _randn(num_bytes // 2), _randn(num_bytes // 2)
        return lambda: target.copy_(source)

    def make_product() -> Callable[[], object]:
        a, b = _randn(8192, 8192), _randn(8192, 8192)
        return lambda: a @ b

    copy = time_case(make_copy, 2 * num_bytes)
    product_ = time_case(make_product, 3 * 8192 * 8192 * 2)
    return 2 * num_bytes / copy.median_us / 1e3, 2 * 8192**3 / product_.median_us / 1e6


# Cases


def norm_cases(model: ModelShape, kernels: TritonKernels) -> Iterator[Case]:
    for num_tokens in [1, 64, 256, 4096]:

        def make(num_tokens: int = num_tokens) -> Callable[[], object]:
            x, residual = _randn(num_tokens, model.hidden), _randn(num_tokens, model.hidden)
            weight = _randn(model.hidden, dtype=torch.float32)
            return lambda: kernels.add_rms_norm(x, residual, weight, 1e-6)

        yield Case(
            "add_rms_norm", model.name, f"T={num_tokens}", make, 8 * num_tokens * model.hidden
        )


def activation_cases(model: ModelShape, kernels: TritonKernels) -> Iterator[Case]:
    for num_tokens in [1, 64, 256, 4096]:

        def make(num_tokens: int = num_tokens) -> Callable[[], object]:
            gate_up = _randn(num_tokens, 2 * model.intermediate)
            return lambda: kernels.silu_mul(gate_up)

        num_bytes = 6 * num_tokens * model.intermediate
        yield Case("silu_mul", model.name, f"T={num_tokens}", make, num_bytes)


def linear_cases(model: ModelShape, kernels: TritonKernels) -> Iterator[Case]:
    """The library's products, for the share they have in a step."""
    q_size, kv_size = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    weights = {
        "qkv": (q_size + 2 * kv_size, model.hidden),
        "o": (model.hidden, q_size),
        "gate_up": (2 * model.intermediate, model.hidden),
        "down": (model.hidden, model.intermediate),
        "lm_head": (model.vocab_size, model.hidden),
    }
    for (name, (rows, columns)), num_tokens in product(weights.items(), [1, 64, 256]):

        def make(
            rows: int = rows, columns: int = columns, num_tokens: int = num_tokens
        ) -> Callable[[], object]:
            linear = kernels.prepare_linear([_randn(rows, columns)], None, BF16)
            x = _randn(num_tokens, columns)
            return lambda: linear(x)

        num_bytes = 2 * (rows * columns + num_tokens * (rows + columns))
        operations = 2 * rows * columns * num_tokens
        yield Case(f"linear_{name}", model.name, f"T={num_tokens}", make, num_bytes, operations)


def lora_cases(model: ModelShape, kernels: TritonKernels) -> Iterator[Case]:
    """Products with what adapters add, up to the program that reads them (an activation, else a
    norm), beside the same without adapters (``plain``), with A below the weights (``rows``) and
    ahead of the product (``ahead``); and sorting a step's tokens."""
    q_size, kv_size = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    size, inner = model.hidden, model.intermediate
    projections = [
        Projection(0, ("q", "k", "v"), size, (q_size, kv_size, kv_size)),
        Projection(0, ("o",), q_size, (size,)),
        Projection(0, ("gate", "up"), size, (inner, inner)),
        Projection(0, ("down",), inner, (size,)),
    ]
    for (num_slots, num_tokens), index in product([(8, 8), (8, 64), (8, 256), (64, 256)], range(4)):
        for way in ("rows", "ahead", "plain"):
            projection, shape = projections[index], f"T={num_tokens} adapters={num_slots}"

            def make(
                projection: Projection = projection,
                num_slots: int = num_slots,
                num_tokens: int = num_tokens,
                way: str = way,
            ) -> Callable[[], object]:
                linear = _random_linear(projection, kernels)
                step = None
                if way != "plain":
                    stack = _random_stack(projection, num_slots, linear if way == "rows" else None)
                    slots = _round_robin(num_tokens, num_slots)
                    step = TritonAdapters(stack, kernels).step(slots)
                return _product_and_reader(projection, kernels, linear, step, num_tokens)

            out = sum(projection.out_features)
            num_bytes = 2 * (out * projection.in_features + num_tokens * (3 * out + size))
            if way != "plain":
                num_bytes += 2 * num_slots * projection.num_elements(16)
            yield Case(
                f"lora_{'_'.join(projection.names)}_{way}", model.name, shape, make, num_bytes
            )

        if not index:

            def make_sort(
                num_slots: int = num_slots, num_tokens: int = num_tokens
            ) -> Callable[[], object]:
                slots = _round_robin(num_tokens, num_slots)
                return lambda: make_tiles(slots, num_slots, most_used=num_slots)

            yield Case("lora_tiles", model.name, shape, make_sort, 4 * num_tokens)


def _product_and_reader(
    projection: Projection,
    kernels: TritonKernels,
    linear: Linear,
    step: AdapterStep | None,
    num_tokens: int,
) -> Callable[[], object]:
    x = _randn(num_tokens, projection.in_features)
    norm = torch.ones(linear.out_features, device="cuda")
    if len(projection.names) == 2:
        if step is None:
            return lambda: kernels.silu_mul(linear(x))
        return lambda: step.project_gated(0, linear, x, True)

    def run() -> object:
        y = linear(x) if step is None else step.project(0, linear, x)
        return kernels.rms_norm(y, norm, 1e-6)

    return run


def _random_linear(projection: Projection, kernels: TritonKernels) -> Linear:
    weight = _randn(sum(projection.out_features), projection.in_features)
    return kernels.prepare_linear([weight], None, BF16)


def _random_stack(projection: Projection, num_slots: int, linear: Linear | None) -> AdapterStack:
    """Adapters of rank 16 for one product; A below the weights of ``linear``."""
    stack = AdapterStack.allocate(
        [projection],
        num_slots,
        16,
        BF16,
        torch.device("cuda"),
        lambda _, num_rows: None if linear is None else rows_for_adapters(linear, num_rows),
    )
    for matrix in (*stack.a, stack.b):
        matrix.normal_()
    stack.table[:, 0, 1] = 16
    return stack


def _round_robin(num_tokens: int, num_slots: int) -> Tensor:
    """Each token's slot."""
    return torch.arange(num_tokens, dtype=torch.int32, device="cuda") % num_slots


def attention_batch(context_lens: list[int], query_lens: list[int]) -> AttentionBatch:
    """A batch whose blocks are scattered over the cache, as after a while of serving."""
    num_blocks = [-(-length // BLOCK_SIZE) for length in context_lens]
    order = torch.randperm(sum(num_blocks), dtype=torch.int32)
    tables = torch.zeros(len(context_lens), max(num_blocks), dtype=torch.int32)
    first = 0
    for row, count in enumerate(num_blocks):
        tables[row, :count] = order[first : first + count]
        first += count
    slots = [
        tables[row, position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        for row, (length, new) in enumerate(zip(context_lens, query_lens, strict=True))
        for position in range(length - new, length)
    ]
    positions = [
        position
        for length, new in zip(context_lens, query_lens, strict=True)
        for position in range(length - new, length)
    ]
    return AttentionBatch(
        query_starts=torch.tensor([0, *query_lens]).cumsum(0).int().cuda(),
        context_lens=torch.tensor(context_lens, dtype=torch.int32).cuda(),
        block_tables=tables.cuda(),
        positions=torch.tensor(positions, dtype=torch.int32).cuda(),
        slots=torch.tensor(slots, dtype=torch.int32).cuda(),
        num_decodes=len(query_lens) if max(query_lens) == 1 else 0,
        max_query_len=max(query_lens),
        max_context_len=MAX_CONTEXT_LEN,  # what a captured graph is given
    )


def paged_cache(model: ModelShape, context_lens: list[int]) -> tuple[Tensor, Tensor]:
    num_blocks = sum(-(-length // BLOCK_SIZE) for length in context_lens)
    shape = (num_blocks, model.num_kv_heads, BLOCK_SIZE, model.head_dim)
    return _randn(*shape), _randn(*shape)


def rope_cases(model: ModelShape, kernels: TritonKernels) -> Iterator[Case]:
    num_all_heads = model.num_heads + 2 * model.num_kv_heads
    for num_tokens in [1, 64, 256, 4096]:

        def make(num_tokens: int = num_tokens) -> Callable[[], object]:
            qkv = _randn(num_tokens, num_all_heads * model.head_dim)
            turns = _randn(MAX_CONTEXT_LEN, model.head_dim // 2, dtype=torch.float32)
            angles = torch.cat([turns.cos(), turns.sin()], dim=1)
            norm = _randn(model.head_dim, dtype=torch.float32) if model.has_qk_norm else None
            batch = attention_batch([64] * num_tokens, [1] * num_tokens)
            keys, values = paged_cache(model, [64] * num_tokens)
            return lambda: kernels.rope_and_cache(
                qkv, angles, keys, values, batch, model.num_heads, norm, norm, 1e-6
            )

        num_bytes = 4 * num_tokens * num_all_heads * model.head_dim
        yield Case("rope_and_cache", model.name, f"T={num_tokens}", make, num_bytes)


def decode_lengths() -> Iterator[tuple[str, list[int]]]:
    for num_sequences, context_len in product([1, 64, 256], [512, 2048, 8192]):
        yield f"S={num_sequences} context={context_len}", [context_len] * num_sequences
    yield "S=256 context=100..1948", [100 + 1848 * row // 255 for row in range(256)]


def decode_cases(
    model: ModelShape, attend: Attend, label: str = "decode_attention"
) -> Iterator[Case]:
    """``attend(q, keys, values, out, batch)`` for one token of each sequence."""
    for shape, lengths in decode_lengths():

        def make(lengths: list[int] = lengths) -> Callable[[], object]:
            batch = attention_batch(lengths, [1] * len(lengths))
            keys, values = paged_cache(model, lengths)
            q = _randn(len(lengths), model.num_heads, model.head_dim)
            out = torch.empty_like(q)
            return lambda: attend(q, keys, values, out, batch)

        num_bytes = (
            4
            * model.head_dim
            * (sum(lengths) * model.num_kv_heads + len(lengths) * model.num_heads)
        )
        operations = 4 * model.head_dim * model.num_heads * sum(lengths)
        yield Case(label, model.name, shape, make, num_bytes, operations)


PREFILLS: list[tuple[str, list[tuple[int, int]]]] = [
    ("1 x 128", [(0, 128)]),
    ("1 x 4096", [(0, 4096)]),
    ("2 x 4096", [(0, 4096)] * 2),
    ("1 x 1024 after 3072", [(3072, 1024)]),
    ("16 x 100..1000", [(0, 100 + 60 * row) for row in range(16)]),
    ("32 x 64 after 4096", [(4096, 64)] * 32),
]
"""Name and (cached, new) tokens of each sequence."""


def _prefill_work(model: ModelShape, sequences: list[tuple[int, int]]) -> tuple[float, float]:
    """Bytes and operations of a prefill; each key and value counted once a sequence."""
    seen = sum(new * cached + new * (new + 1) / 2 for cached, new in sequences)
    contexts = sum(cached + new for cached, new in sequences)
    queries = sum(new for _, new in sequences)
    num_bytes = 4 * model.head_dim * (contexts * model.num_kv_heads + queries * model.num_heads)
    return num_bytes, 4 * model.head_dim * model.num_heads * seen


def prefill_cases(
    model: ModelShape, attend: Attend, label: str = "prefill_attention"
) -> Iterator[Case]:
    """``attend(q, keys, values, out, batch, qkv=product)`` for several tokens of each sequence."""
    for shape, sequences in PREFILLS:

        def make(sequences: list[tuple[int, int]] = sequences) -> Callable[[], object]:
            context_lens = [cached + new for cached, new in sequences]
            batch = attention_batch(context_lens, [new for _, new in sequences])
            keys, values = paged_cache(model, context_lens)
            num_heads = model.num_heads + 2 * model.num_kv_heads
            qkv = _randn(sum(new for _, new in sequences), num_heads * model.head_dim)
            heads = qkv.view(len(qkv), num_heads, model.head_dim)
            q = heads[:, : model.num_heads]
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
            return lambda: attend(q, keys, values, out, batch, qkv=qkv)

        yield Case(label, model.name, shape, make, *_prefill_work(model, sequences))


def _attend_by_pages(*tensors: Any, qkv: Tensor, **options: Any) -> None:
    prefill_attention(*tensors, **options)


def sdpa_cases(model: ModelShape) -> Iterator[Case]:
    """The rival: gather the pages, then the library's fused attention; and that alone."""
    for (shape, sequences), gathers in product(PREFILLS, [True, False]):

        def make(
            sequences: list[tuple[int, int]] = sequences, gathers: bool = gathers
        ) -> Callable[[], object]:
            context_lens = [cached + new for cached, new in sequences]
            batch = attention_batch(context_lens, [new for _, new in sequences])
            cache = paged_cache(model, context_lens)
            queries = [_randn(1, model.num_heads, new, model.head_dim) for _, new in sequences]

            def gather(row: int) -> list[Tensor]:
                blocks = batch.block_tables[row, : -(-context_lens[row] // BLOCK_SIZE)]
                pages = [part[blocks].transpose(0, 1).flatten(1, 2)[None] for part in cache]
                return [page[:, :, : context_lens[row]] for page in pages]

            gathered = [gather(row) for row in range(len(sequences))]

            def attend() -> None:
                for row, (cached, new) in enumerate(sequences):
                    keys, values = gather(row) if gathers else gathered[row]
                    bias = causal_lower_right(new, cached + new) if cached else None
                    F.scaled_dot_product_attention(
                        queries[row], keys, values, attn_mask=bias, is_causal=bias is None,
                        enable_gqa=True,
                    )  # fmt: skip

            return attend

        label = "sdpa_with_gather" if gathers else "sdpa_alone"
        yield Case(label, model.name, shape, make, *_prefill_work(model, sequences))


def sampling_cases(model: ModelShape, kernels: TritonKernels) -> Iterator[Case]:
    kinds = {
        "greedy": (0.0, 0, 1.0),
        "random": (0.6, 0, 1.0),
        "top-k 20 top-p .95": (0.6, 20, 0.95),
    }
    for (kind, (temperature, top_k, top_p)), num_rows in product(kinds.items(), [1, 64, 256]):

        def make(
            temperature: float = temperature,
            top_k: int = top_k,
            top_p: float = top_p,
            num_rows: int = num_rows,
        ) -> Callable[[], object]:
            logits = 2 * _randn(num_rows, model.vocab_size, dtype=torch.float32)
            batch = SamplingBatch(
                temperature=torch.full((num_rows,), temperature, device="cuda"),
                top_k=torch.full((num_rows,), top_k, dtype=torch.int32, device="cuda"),
                top_p=torch.full((num_rows,), top_p, device="cuda"),
                min_p=torch.zeros(num_rows, device="cuda"),
                seeds=torch.randint(2**62, (num_rows,), device="cuda"),
                positions=torch.zeros(num_rows, dtype=torch.int32, device="cuda"),
                all_greedy=temperature == 0,
                any_filter=top_k > 0,
            )
            return lambda: kernels.sample(logits, batch)

        num_bytes = 4 * num_rows * model.vocab_size
        yield Case(f"sample {kind}", model.name, f"R={num_rows}", make, num_bytes)


def standard_cases() -> dict[str, list[Case]]:
    """All cases by group; a case's tensors are made only when it is timed."""
    device = torch.device("cuda")
    kernels, machine = TritonKernels(device), Machine.of(device)
    common: dict[str, Any] = {"scale": 0.09, "window": None, "machine": machine}
    groups: dict[str, list[Case]] = {}
    for model in MODELS:
        for name, cases in {
            "norm": norm_cases(model, kernels),
            "activation": activation_cases(model, kernels),
            "rope": rope_cases(model, kernels),
            "decode": decode_cases(model, partial(decode_attention, **common)),
            "prefill": chain(
                prefill_cases(model, partial(prefill_attention, **common)),
                prefill_cases(model, partial(_attend_by_pages, **common), "prefill from pages"),
            ),
            "sdpa": sdpa_cases(model),
            "sampling": sampling_cases(model, kernels),
            "linear": linear_cases(model, kernels),
            "lora": lora_cases(model, kernels),
        }.items():
            groups.setdefault(name, []).extend(cases)
    return groups


def decode_sweep() -> Iterator[Case]:
    """Every reasonable shape of the decode program, to choose the table from."""
    machine = Machine.of(torch.device("cuda"))
    for tokens, shortest, stages, programs in product([32, 64], [64, 128], [3, 5], [4, 8, 16, 32]):
        config = DecodeConfig(tokens, shortest, 4, stages, programs)

        attend = partial(decode_attention, scale=0.09, window=None, machine=machine, config=config)
        label = f"decode tokens={tokens} split>={shortest} stages={stages} per_sm={programs}"
        for model in MODELS:
            for case in decode_cases(model, attend, label):
                if case.shape in {"S=1 context=512", "S=64 context=512", "S=256 context=512"}:
                    yield case


def prefill_sweep() -> Iterator[Case]:
    """Every reasonable shape of the prefill program, to choose the table from."""
    machine = Machine.of(torch.device("cuda"))
    for (rows, warps), tokens, stages in product(
        [(64, 4), (128, 4), (128, 8)], [64, 128], [2, 3, 4]
    ):
        config = PrefillConfig(rows, tokens, warps, stages)

        attend = partial(prefill_attention, scale=0.09, window=None, machine=machine, config=config)
        label = f"prefill rows={rows} tokens={tokens} warps={warps} stages={stages}"
        for model in MODELS:
            yield from prefill_cases(model, attend, label)


# Reporting


def run(
    cases: Sequence[Case], copy_gb_s: float, product_tflop_s: float
) -> Iterator[dict[str, Any]]:
    """Time the cases in turn. One that cannot run (a sweep's shape too large) says why."""
    for case in cases:
        figure: dict[str, Any] = {"kernel": case.kernel, "model": case.model, "shape": case.shape}
        try:
            timing = time_case(case.make, case.num_bytes)
        except (TritonError, RuntimeError) as error:
            yield figure | {"error": (str(error) or repr(error)).splitlines()[0]}
            continue
        finally:
            torch.cuda.empty_cache()
        gb_s = case.num_bytes / timing.median_us / 1e3
        tflop_s = case.num_operations / timing.median_us / 1e6
        share = max(gb_s / copy_gb_s, tflop_s / product_tflop_s)
        yield figure | {
            "us": round(timing.median_us, 3),
            "spread_percent": round(timing.spread_percent, 1),
            "gb_per_s": round(gb_s, 1),
            "tflop_per_s": round(tflop_s, 1),
            "percent_of_ceiling": round(100 * share, 1),
        }


def commit() -> str | None:
    """The commit this tree stands at, where git and its history are at hand."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def environment(arguments: Sequence[str]) -> dict[str, Any]:
    return {
        "benchmark": "kernels",
        "command": " ".join(["benchmarks/kernels.py", *arguments]),
        "commit": commit(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def print_table(figures: Sequence[dict[str, Any]]) -> None:
    print(
        f"\n{'kernel':44}{'model':6}{'shape':26}{'us':>10}{'±%':>6}{'GB/s':>8}{'TF/s':>8}{'%':>6}"
    )
    for figure in figures:
        head = f"{figure['kernel']:44}{figure['model']:6}{figure['shape']:26}"
        if "error" in figure:
            print(head + "  " + figure["error"])
            continue
        print(
            f"{head}{figure['us']:10.2f}{figure['spread_percent']:6.1f}{figure['gb_per_s']:8.0f}"
            f"{figure['tflop_per_s']:8.1f}{figure['percent_of_ceiling']:6.1f}"
        )


def print_best(figures: Sequence[dict[str, Any]]) -> None:
    """Of a sweep: the fastest three of each shape."""
    timed = [figure for figure in figures if "us" in figure]
    for model, shape in dict.fromkeys((f["model"], f["shape"]) for f in timed):
        same = [f for f in timed if (f["model"], f["shape"]) == (model, shape)]
        for figure in sorted(same, key=lambda f: float(f["us"]))[:3]:
            print(f"best {model:5} {shape:26}{figure['us']:10.2f} us  {figure['kernel']}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="groups to time")
    parser.add_argument("--model", choices=[m.name for m in MODELS], help="one model's shapes only")
    parser.add_argument(
        "--sweep", choices=["decode", "prefill"], help="time many tile shapes of one kernel instead"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results/kernels.jsonl",
        help="file to append the JSON lines to (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/kernels.py needs a CUDA device; this machine has none.")
    torch.manual_seed(0)
    if options.sweep is not None:
        cases = list(decode_sweep() if options.sweep == "decode" else prefill_sweep())
    else:
        groups = standard_cases()
        cases = [case for name in options.only for case in groups[name]]
    if options.model is not None:
        cases = [case for case in cases if case.model == options.model]
    copy_gb_s, product_tflop_s = ceilings()
    header = environment(sys.argv[1:]) | {
        "copy_gb_per_s": round(copy_gb_s, 1),
        "product_tflop_per_s": round(product_tflop_s, 1),
    }
    print(json.dumps(header), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figures = []
    with options.output.open("a") as file:
        for figure in run(cases, copy_gb_s, product_tflop_s):
            figures.append(figure)
            print(json.dumps(figure), flush=True)
            print(json.dumps(header | figure), file=file, flush=True)
    print_table(figures)
    if options.sweep is not None:
        print_best(figures)
    print(f"\ncopy {copy_gb_s:.0f} GB/s, 8192^3 bf16 product {product_tflop_s:.0f} TFLOP/s")


if __name__ == "__main__":
    main()

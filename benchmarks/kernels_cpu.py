"""What the CPU kernels reach, beside what the machine can do and beside plain torch.

Prints one JSON line per figure. Every figure is the best and the median of rounds in which the
contenders take turns, so that a busy machine slows them alike. The default shapes are those of
SmolLM2-135M.

    python benchmarks/kernels_cpu.py --sections ceilings linear step
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from octavo.kernels.adapters import Adapters, AdapterStack, Packing, Projection, TorchAdapters
from octavo.kernels.cpu import CpuKernels
from octavo.kernels.cpu.adapters import CpuAdapters
from octavo.kernels.interface import (
    AttentionBatch,
    GGMLType,
    Kernels,
    Linear,
    PackedTensor,
    SamplingBatch,
    WeightPart,
)
from octavo.kernels.reference import DenseLinear, ReferenceKernels

BLOCK_SIZE = 16


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes."""

    num_layers: int = 30
    hidden_size: int = 576
    num_heads: int = 9
    num_kv_heads: int = 3
    head_dim: int = 64
    intermediate_size: int = 1536
    vocab_size: int = 49152

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """``(out_features, in_features)`` of a layer's four products."""
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return {
            "qkv": (qkv, self.hidden_size),
            "output": (self.hidden_size, self.num_heads * self.head_dim),
            "gate_up": (2 * self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
        }

    def projections(self) -> list[Projection]:
        """What adapters add to, layer by layer."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        parts = {
            "qkv": (q, kv, kv),
            "output": (self.hidden_size,),
            "gate_up": (self.intermediate_size, self.intermediate_size),
            "down": (self.hidden_size,),
        }
        return [
            Projection(layer, tuple(map(str, range(len(sizes)))), self.matrices[name][1], sizes)
            for layer in range(self.num_layers)
            for name, sizes in parts.items()
        ]


@dataclass(frozen=True)
class Time:
    """Seconds of one call."""

    best: float
    median: float


def race(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, Time]:
    """Time each contender once a round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: Time(min(t), statistics.median(t)) for name, t in times.items()}


def report(figure: str, **values: float | str) -> None:
    rounded = {
        key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()
    }
    print(json.dumps({"figure": figure, **rounded}), flush=True)


def milliseconds(times: dict[str, Time]) -> dict[str, float]:
    return {
        f"{name}_{kind}_ms": 1e3 * getattr(each, kind)
        for name, each in times.items()
        for kind in ("best", "median")
    }


@dataclass(frozen=True)
class Ceilings:
    read_gb_per_s: float
    gflop_per_s: float


def measure_ceilings(kernels: CpuKernels, rounds: int) -> Ceilings:
    """Read bandwidth over half a gigabyte, and fused multiply-adds on registers."""
    library, threads = kernels.library, torch.get_num_threads()
    data = torch.ones(128 << 20)
    vectors = torch.full((2 * library.lanes,), 0.5)
    sums = torch.empty(threads)
    num_fma_rounds = 2_000_000

    def read() -> int:
        return library.read_all(data.data_ptr(), data.numel(), 1, sums.data_ptr(), threads)

    def multiply() -> int:
        return library.multiply_add(vectors.data_ptr(), num_fma_rounds, sums.data_ptr(), threads)

    times = race({"read": read, "multiply": multiply}, rounds)
    operations = num_fma_rounds * 12 * library.lanes * 2 * threads
    ceilings = Ceilings(
        read_gb_per_s=data.numel() * 4 / times["read"].best / 1e9,
        gflop_per_s=operations / times["multiply"].best / 1e9,
    )
    report(
        "ceilings",
        variant=library.variant,
        threads=float(threads),
        read_gb_per_s=ceilings.read_gb_per_s,
        fma_gflop_per_s=ceilings.gflop_per_s,
    )
    return ceilings


def weight_part(kind: str, num_outputs: int, num_inputs: int) -> tuple[WeightPart, torch.dtype]:
    """Random weights of this storage: a dense dtype's name or a GGUF encoding."""
    if hasattr(torch, kind):
        dense = torch.randn(num_outputs, num_inputs) / num_inputs**0.5
        return dense, getattr(torch, kind)
    block_columns, block_bytes = {
        "Q4_0": (32, 18),
        "Q4_1": (32, 20),
        "Q5_0": (32, 22),
        "Q5_1": (32, 24),
        "Q8_0": (32, 34),
        "Q4_K": (256, 144),
        "Q5_K": (256, 176),
        "Q6_K": (256, 210),
    }[kind]
    # Bytes whose float16 fields are small whatever they are.
    row_bytes = num_inputs // block_columns * block_bytes
    blocks = torch.randint(0, 16, (num_outputs, row_bytes), dtype=torch.uint8)
    return PackedTensor(blocks, GGMLType(kind), num_inputs), torch.float32


def bench_linear(
    kernels: CpuKernels, shape: Shape, kinds: list[str], rows: list[int], ceilings: Ceilings,
    rounds: int,
) -> None:  # fmt: skip
    matrices = {**shape.matrices, "head": (shape.vocab_size, shape.hidden_size)}
    for name, (num_outputs, num_inputs) in matrices.items():
        for kind in kinds:
            if kind.endswith("_K") and num_inputs % 256:
                continue
            part, dtype = weight_part(kind, num_outputs, num_inputs)
            # Copies enough to leave the caches, as the layers of a model do.
            size = kernels.prepare_linear([part], None, dtype).size_bytes
            copies = [
                kernels.prepare_linear([part], None, dtype)
                for _ in range(max(1, min(shape.num_layers, (64 << 20) // size)))
            ]
            torch_linears = [
                DenseLinear(torch.randn(num_outputs, num_inputs), None) for _ in copies
            ]
            for num_rows in rows:
                x = torch.randn(num_rows, num_inputs)
                times = race(
                    {
                        "octavo": partial(call_each, copies, x),
                        "torch_f32": partial(call_each, torch_linears, x),
                    },
                    rounds,
                )
                each = times["octavo"].best / len(copies)
                gb_per_s = size / each / 1e9
                gflop_per_s = 2 * num_outputs * num_inputs * num_rows / each / 1e9
                report(
                    f"linear {name} {kind} rows={num_rows}",
                    octavo_us=each * 1e6,
                    torch_f32_us=times["torch_f32"].best / len(copies) * 1e6,
                    gb_per_s=gb_per_s,
                    of_read_ceiling=gb_per_s / ceilings.read_gb_per_s,
                    gflop_per_s=gflop_per_s,
                    of_fma_ceiling=gflop_per_s / ceilings.gflop_per_s,
                )


def call_each(linears: Sequence[Linear], x: Tensor) -> None:
    for linear in linears:
        linear(x)


class Model:
    """Random layers and a head, called as the decoder calls them."""

    def __init__(self, kernels: Kernels, shape: Shape, kind: str) -> None:
        self.kernels, self.shape = kernels, shape
        self.layers = [
            {
                name: prepare(kernels, kind, num_outputs, num_inputs)
                for name, (num_outputs, num_inputs) in shape.matrices.items()
            }
            for _ in range(shape.num_layers)
        ]
        self.head = prepare(kernels, kind, shape.vocab_size, shape.hidden_size)
        self.norm = torch.ones(shape.hidden_size)
        self.cos_sin = torch.randn(8192, shape.head_dim)

    def forward(
        self, ids: Tensor, caches: list[tuple[Tensor, Tensor]], batch: AttentionBatch
    ) -> Tensor:
        kernels, shape, norm = self.kernels, self.shape, self.norm
        residual = self.head.rows(ids)
        hidden = kernels.rms_norm(residual, norm, 1e-5)
        for layer, (keys, values) in zip(self.layers, caches, strict=True):
            q = kernels.rope_and_cache(
                layer["qkv"](hidden), self.cos_sin, keys, values, batch, shape.num_heads,
                None, None, 1e-5,
            )  # fmt: skip
            attended = kernels.paged_attention(q, keys, values, batch, 0.125, None)
            hidden = layer["output"](attended.view(len(ids), -1))
            hidden = kernels.add_rms_norm(hidden, residual, norm, 1e-5)
            hidden = layer["down"](kernels.silu_mul(layer["gate_up"](hidden)))
            hidden = kernels.add_rms_norm(hidden, residual, norm, 1e-5)
        return hidden

    def step(
        self, ids: Tensor, caches: list[tuple[Tensor, Tensor]], batch: AttentionBatch,
        sampling: SamplingBatch,
    ) -> Tensor:  # fmt: skip
        last = self.forward(ids, caches, batch)[batch.query_starts[1:].long() - 1]
        return self.kernels.sample(self.head(last), sampling)


def prepare(kernels: Kernels, kind: str, num_outputs: int, num_inputs: int) -> Linear:
    part, dtype = weight_part(kind, num_outputs, num_inputs)
    return kernels.prepare_linear([part], None, dtype)


def make_batch(num_sequences: int, num_new: int, context_len: int) -> tuple[AttentionBatch, int]:
    """Sequences alike, each with its own blocks; also the number of blocks."""
    blocks_each = -(-context_len // BLOCK_SIZE)
    tables = torch.randperm(num_sequences * blocks_each).view(num_sequences, -1)
    positions = torch.arange(context_len - num_new, context_len).repeat(num_sequences)
    sequences = torch.arange(num_sequences).repeat_interleave(num_new)
    slots = tables[sequences, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    batch = AttentionBatch(
        query_starts=(torch.arange(num_sequences + 1) * num_new).int(),
        context_lens=torch.full((num_sequences,), context_len, dtype=torch.int32),
        block_tables=tables.int(),
        positions=positions.int(),
        slots=slots.int(),
        num_decodes=num_sequences if num_new == 1 else 0,
        max_query_len=num_new,
        max_context_len=context_len,
    )
    return batch, num_sequences * blocks_each


def make_caches(shape: Shape, num_blocks: int) -> list[tuple[Tensor, Tensor]]:
    size = (num_blocks, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
    return [(torch.randn(size), torch.randn(size)) for _ in range(shape.num_layers)]


def make_sampling(num_rows: int, temperature: float, top_k: int, top_p: float) -> SamplingBatch:
    return SamplingBatch(
        temperature=torch.full((num_rows,), temperature),
        top_k=torch.full((num_rows,), top_k, dtype=torch.int32),
        top_p=torch.full((num_rows,), top_p),
        min_p=torch.zeros(num_rows),
        seeds=torch.arange(num_rows),
        positions=torch.arange(num_rows, dtype=torch.int32),
        all_greedy=temperature == 0,
        any_filter=top_k > 0 or top_p < 1,
    )


def bench_step(
    kernels: CpuKernels, shape: Shape, kinds: list[str], rows: list[int], rounds: int
) -> None:
    """Whole decode steps of a model, greedy, 256 tokens of context each."""
    torch_model = Model(ReferenceKernels(), shape, "float32")
    for kind in kinds:
        model = Model(kernels, shape, kind)
        for num_rows in rows:
            batch, num_blocks = make_batch(num_rows, 1, 256)
            caches = make_caches(shape, num_blocks)
            ids = torch.randint(shape.vocab_size, (num_rows,), dtype=torch.int32)
            step = (ids, caches, batch, make_sampling(num_rows, 0.0, 0, 1.0))
            times = race(
                {
                    "octavo": partial(model.step, *step),
                    "reference_f32": partial(torch_model.step, *step),
                },
                rounds,
            )
            report(
                f"decode step {kind} rows={num_rows}",
                tokens_per_s=num_rows / times["octavo"].best,
                **milliseconds(times),
            )


def bench_prefill(
    kernels: CpuKernels, shape: Shape, kinds: list[str], lengths: list[int], rounds: int
) -> None:
    """Whole prompts in one step; and how much of that attention takes."""
    for kind in kinds:
        model = Model(kernels, shape, kind)
        for length in lengths:
            batch, num_blocks = make_batch(1, length, length)
            caches = make_caches(shape, num_blocks)
            ids = torch.randint(shape.vocab_size, (length,), dtype=torch.int32)
            q = torch.randn(length, shape.num_heads, shape.head_dim)
            sampling = make_sampling(1, 0.0, 0, 1.0)
            times = race(
                {
                    "prefill": partial(model.step, ids, caches, batch, sampling),
                    "attention": partial(attend_each, kernels, q, caches, batch),
                },
                max(1, rounds // 4),
            )
            flops = 2 * length**2 * shape.num_heads * shape.head_dim * shape.num_layers
            report(
                f"prefill {kind} tokens={length}",
                tokens_per_s=length / times["prefill"].best,
                attention_gflop_per_s=flops / times["attention"].best / 1e9,
                **milliseconds(times),
            )


def attend_each(
    kernels: Kernels, q: Tensor, caches: list[tuple[Tensor, Tensor]], batch: AttentionBatch
) -> None:
    for keys, values in caches:
        kernels.paged_attention(q, keys, values, batch, 0.125, None)


def bench_adapters(kernels: CpuKernels, shape: Shape, rows: list[int], rounds: int) -> None:
    """All products of a model's layers with 8 adapters of rank 16, round robin, beside the same
    without adapters and beside plain torch's way of applying them."""
    projections = shape.projections()
    linears = [
        prepare(kernels, "float32", sum(each.out_features), each.in_features)
        for each in projections
    ]
    stack = AdapterStack.allocate(projections, 8, 16, torch.float32, torch.device("cpu"))
    for matrix in (*stack.a, stack.b):
        matrix.normal_(0, 0.02)
    stack.table.copy_(torch.tensor(Packing(stack.projections, (16,) * len(projections)).table))
    for num_rows in rows:
        slots = (torch.arange(num_rows) % 8).int()
        x = {each.in_features: torch.randn(num_rows, each.in_features) for each in projections}
        times = race(
            {
                "without": partial(adapt_each, linears, x, None, slots),
                "octavo": partial(adapt_each, linears, x, CpuAdapters(stack, kernels), slots),
                "torch_f32": partial(adapt_each, linears, x, TorchAdapters(stack, kernels), slots),
            },
            rounds,
        )
        report(f"adapters rows={num_rows}", **milliseconds(times))


def adapt_each(
    linears: Sequence[Linear], x: dict[int, Tensor], adapters: Adapters | None, slots: Tensor
) -> None:
    step = None if adapters is None else adapters.step(slots)
    for index, linear in enumerate(linears):
        if step is None:
            linear(x[linear.in_features])
        else:
            step.project(index, linear, x[linear.in_features])


def bench_sample(kernels: CpuKernels, shape: Shape, rounds: int) -> None:
    reference = ReferenceKernels()
    logits = 3 * torch.randn(1, shape.vocab_size)
    cases = {
        "greedy": (0.0, 0, 1.0),
        "temperature": (1.0, 0, 1.0),
        "top-k": (1.0, 50, 1.0),
        "top-p": (1.0, 0, 0.9),
        "top-k and top-p": (0.7, 50, 0.9),
    }
    for name, parameters in cases.items():
        batch = make_sampling(1, *parameters)
        times = race(
            {
                "octavo": partial(kernels.sample, logits, batch),
                "reference": partial(reference.sample, logits, batch),
            },
            rounds,
        )
        report(f"sample {name} vocab={shape.vocab_size}", **milliseconds(times))


def bench_calls(kernels: CpuKernels, rounds: int) -> None:
    """The cost of calling: kernels on next to nothing, and a bare allocation."""
    linear = kernels.prepare_linear([torch.randn(32, 32)], None, torch.float32)
    x, gate_up, weight = torch.randn(1, 32), torch.randn(1, 64), torch.ones(32)
    calls: dict[str, Callable[[], object]] = {
        "linear": lambda: linear(x),
        "rms_norm": lambda: kernels.rms_norm(x, weight, 1e-5),
        "silu_mul": lambda: kernels.silu_mul(gate_up),
        "torch.empty": lambda: torch.empty(1, 32),
    }
    repeats = 2000

    def many(call: Callable[[], object]) -> None:
        for _ in range(repeats):
            call()

    times = race({name: partial(many, call) for name, call in calls.items()}, rounds)
    report("call", **{f"{name}_us": t.best / repeats * 1e6 for name, t in times.items()})


SECTIONS = ("ceilings", "calls", "linear", "step", "prefill", "adapters", "sample")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variant", help="a build of the library; the best one by default")
    parser.add_argument("--kinds", nargs="+", default=["float32", "bfloat16", "Q4_1", "Q8_0"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--prompts", nargs="+", type=int, default=[128, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=20)
    return parser.parse_args(arguments)


def run_sections(options: argparse.Namespace) -> None:
    kernels, shape, rounds = CpuKernels(options.variant), Shape(), options.rounds
    ceilings = measure_ceilings(kernels, rounds)
    sections: dict[str, Callable[[], None]] = {
        "ceilings": lambda: None,  # always measured, the others compare with them
        "calls": lambda: bench_calls(kernels, rounds),
        "linear": lambda: bench_linear(
            kernels, shape, options.kinds, options.rows, ceilings, rounds
        ),
        "step": lambda: bench_step(kernels, shape, options.kinds, options.rows, rounds),
        "prefill": lambda: bench_prefill(kernels, shape, options.kinds, options.prompts, rounds),
        "adapters": lambda: bench_adapters(kernels, shape, options.rows, rounds),
        "sample": lambda: bench_sample(kernels, shape, rounds),
    }
    for name in options.sections:
        sections[name]()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    run_sections(options)


if __name__ == "__main__":
    main()

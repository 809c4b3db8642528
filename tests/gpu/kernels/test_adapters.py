"""LoRA's programs on the device: the unit suite's cases, a model's shapes, and captured steps."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import adapter_parity
import kernel_parity
from kernel_parity import Trial
from octavo.kernels.triton import TritonKernels
from octavo.kernels.triton.adapters import TritonAdapters

FLOAT32_CASES = ["decode"]
"""As in test_parity: bfloat16 is what a card serves, and the interpreter runs all in both. A case
compiles a dozen programs."""
TOKENS = {
    "one": [3],
    "decode": [index % 9 - 1 for index in range(256)],
    "prefill": [0] * 700 + [-1] * 50 + [5] * 1300,
}
LARGE: dict[str, kernel_parity.Run] = {
    f"{name}-{rank}": partial(
        adapter_parity.adapters,
        slots=TOKENS[name],
        ranks=[rank] * 9,
        max_rank=rank,
        in_features=4096,
        inner=14336,
    )
    for name, rank in [("one", 16), ("decode", 16), ("prefill", 64)]
}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, torch.bfloat16) for case in adapter_parity.ADAPTER_CASES),
        *((case, torch.float32) for case in FLOAT32_CASES),
    ],
    ids=str,
)
def test_program_agrees_with_the_reference(case: str, dtype: torch.dtype) -> None:
    seed = int(torch.seed() % 2**31)
    print(f"seed {seed}")
    adapter_parity.check(case, torch.device("cuda"), dtype, seed)


@pytest.mark.parametrize("case", LARGE)
def test_program_agrees_with_the_reference_on_large_shapes(case: str) -> None:
    seed = int(torch.seed() % 2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    LARGE[case](Trial(torch.device("cuda"), torch.bfloat16, seed))


@pytest.mark.parametrize("has_rows", [True, False])
def test_a_captured_step_follows_its_slots(has_rows: bool) -> None:
    torch.manual_seed(0)
    trial = Trial(torch.device("cuda"), torch.bfloat16, 0)
    shapes = adapter_parity.projections(512, 1024)
    kernels = TritonKernels(torch.device("cuda"))
    norm = torch.ones(512, device="cuda")
    x = trial.randn(64, 512)
    linears = [
        kernels.prepare_linear(
            [trial.randn(sum(p.out_features), p.in_features) / p.in_features**0.5],
            None,
            trial.dtype,
        )
        for p in shapes
    ]
    stack = adapter_parity.random_stack(
        trial, shapes, [16, 8, 16, 4], 16, linears if has_rows else ()
    )
    adapters = TritonAdapters(stack, kernels)
    slots = torch.full((64,), -1, dtype=torch.int32, device="cuda")

    def layer() -> Tensor:
        step = adapters.step(slots)
        qkv = step.project(0, linears[0], x)
        attended = step.project(1, linears[1], qkv[:, :1024])
        attended = kernels.rms_norm(attended, norm, 1e-6)
        hidden = step.project(3, linears[3], step.project_gated(2, linears[2], attended, True))
        return kernels.rms_norm(hidden, norm, 1e-6)

    layer()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer()
    for seed in range(5):
        generator = torch.Generator(device="cuda").manual_seed(seed)
        slots.copy_(torch.randint(-1, 4, (64,), device="cuda", generator=generator))
        graph.replay()
        trial.assert_close(captured, layer())

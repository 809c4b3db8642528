"""LoRA's Triton programs against the reference, as named cases for any device.

As :mod:`kernel_parity`, and run as a program in the same way. What no adapter fills in slots,
and what no program writes, is NaN.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kernel_parity import (
    REFERENCE,
    Run,
    Trial,
    assert_same_bits,
    poisoned_memory,
    report,
)
from octavo.kernels.adapters import (
    AdapterStack,
    AdapterUse,
    Packing,
    Projection,
    TorchAdapters,
    padded_rank,
)
from octavo.kernels.interface import Linear
from octavo.kernels.reference import DenseLinear
from octavo.kernels.select import rows_for_adapters

_IN, _INNER = 72, 88


def projections(in_features: int = _IN, inner: int = _INNER) -> list[Projection]:
    """One layer's, of odd sizes."""
    return [
        Projection(0, ("q", "k", "v"), in_features, (inner, 40, 40)),
        Projection(0, ("o",), inner, (in_features,)),
        Projection(0, ("gate", "up"), in_features, (inner, inner)),
        Projection(0, ("down",), inner, (in_features,)),
    ]


def random_stack(
    trial: Trial,
    shapes: list[Projection],
    ranks: list[int | None],
    max_rank: int,
    linears: Sequence[Linear] = (),
) -> AdapterStack:
    """A slot for each rank; None: nothing is in it, which is NaN. Every second adapter leaves one
    of the products alone. ``linears``: the products themselves, if A is to be rows of theirs."""
    stack = AdapterStack.allocate(
        shapes,
        len(ranks),
        max_rank,
        trial.dtype,
        trial.device,
        lambda index, rows: rows_for_adapters(linears[index], rows) if linears else None,
    )
    for matrix in (*stack.a, stack.b):
        matrix.fill_(float("nan"))
    for slot, rank in enumerate(ranks):
        if rank is not None:
            own = [
                0 if slot % 2 and index == slot % 4 else padded_rank(rank)
                for index in range(len(shapes))
            ]
            _write_random(trial, stack, slot, Packing(tuple(shapes), tuple(own)), rank)
    return stack


def _write_random(
    trial: Trial, stack: AdapterStack, slot: int, packing: Packing, rank: int
) -> None:
    run = torch.zeros(packing.size, dtype=trial.dtype, device=trial.device)
    for projection, (a, b) in zip(packing.projections, packing.matrices(run), strict=True):
        a[:, :rank] = trial.randn(*a[:, :rank].shape) / projection.in_features**0.5
        b[:, :rank] = trial.randn(*b[:, :rank].shape) / rank**0.5
    stack.write(slot, packing.cut(run, torch.tensor(packing.table, device=trial.device)))


def adapters(
    trial: Trial,
    slots: list[int],
    ranks: list[int | None],
    max_rank: int = 16,
    in_features: int = _IN,
    inner: int = _INNER,
    is_silu: bool = True,
    has_rows: bool = False,
) -> None:
    """All four products of a layer; ``slots``: each token's. ``has_rows``: A stands below the
    weights, and the products shrink, or as few of many adapters are used they do not."""
    from octavo.kernels.triton import TritonKernels
    from octavo.kernels.triton.adapters import TritonAdapters

    shapes = projections(in_features, inner)
    kernels = TritonKernels(trial.device)
    linears = [
        kernels.prepare_linear([_weight(trial, projection)], _bias(trial, projection), trial.dtype)
        for projection in shapes
    ]
    stack = random_stack(trial, shapes, ranks, max_rank, linears if has_rows else ())
    chosen = trial.ints(slots)
    # In float32 on the same numbers: in bf16 the reference itself rounds three times.
    wide = replace(stack, a=tuple(a.float() for a in stack.a), b=stack.b.float())
    expected = TorchAdapters(wide, REFERENCE).step(chosen)
    actual = TritonAdapters(stack, kernels)
    uses = {AdapterUse.MANY, actual.use_of(len(set(slots)))} - {AdapterUse.NONE}
    steps = [actual.step(chosen, use) for use in uses]
    for index, (projection, linear) in enumerate(zip(shapes, linears, strict=True)):
        # Rows of a wider tensor: their stride is not their length.
        x = trial.randn(len(slots), projection.in_features + 8)[:, : projection.in_features]
        plain = _WideResults(linear)
        for step in steps:
            with poisoned_memory():
                results: list[tuple[Tensor, Tensor]] = [
                    (step.project(index, linear, x), expected.project(index, plain, x.float()))
                ]
                if len(projection.names) == 2:
                    gated = step.project_gated(index, linear, x, is_silu)
                    wanted = expected.project_gated(index, plain, x.float(), is_silu)
                    results.append((gated, wanted))
            for out, wanted in results:
                trial.assert_close(out, wanted.to(trial.dtype))


def _weight(trial: Trial, projection: Projection) -> Tensor:
    weight = trial.randn(sum(projection.out_features), projection.in_features)
    return weight / projection.in_features**0.5


def _bias(trial: Trial, projection: Projection) -> Tensor | None:
    """As models have it, if any do."""
    is_attention = len(projection.names) == 3
    return trial.randn(sum(projection.out_features)) if is_attention else None


class _WideResults(DenseLinear):
    """What a product in a narrow dtype gives, as float32."""

    def __init__(self, linear: Linear) -> None:
        assert isinstance(linear, DenseLinear)
        super().__init__(linear.weight, linear.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x.to(self.weight.dtype)).float()


def company(trial: Trial, num_tokens: int) -> None:
    """With kernels that promise it, a token's bits are the same in any batch; the interpreter's
    are not, so there it is enough that they run."""
    from octavo.kernels.triton.adapters import TritonAdapters
    from octavo.kernels.triton.invariant import InvariantTritonKernels

    is_exact = trial.device.type == "cuda"
    shapes = projections(640, _INNER) if is_exact else projections()[1:3]
    stack = random_stack(trial, shapes, [16, 3, 16], 16)
    kernels = InvariantTritonKernels(trial.device)
    adapters = TritonAdapters(stack, kernels)
    slots = trial.ints([index % 4 - 1 for index in range(num_tokens)])
    for index, projection in enumerate(shapes):
        x = trial.randn(num_tokens, projection.in_features)
        linear = kernels.prepare_linear(
            [trial.randn(sum(projection.out_features), projection.in_features)], None, trial.dtype
        )
        whole = adapters.step(slots).project(index, linear, x)
        parts = [(3, 9), (0, 1), (5, 6), (num_tokens - 20, num_tokens)]
        for first, last in parts if is_exact else parts[:1]:
            own = adapters.step(slots[first:last].clone())
            alone = own.project(index, linear, x[first:last])
            assert_same_bits(trial, alone, whole[first:last], (index, first))


def tiles(trial: Trial, num_tokens: int, num_slots: int, most_used: int) -> None:
    """Every token is in exactly one tile, of its own slot."""
    from octavo.kernels.triton.adapter_tiles import make_tiles

    chosen = torch.cat([torch.tensor([-1]), torch.randperm(num_slots)[:most_used]])
    slots = chosen[torch.randint(len(chosen), (num_tokens,))].to(trial.device, torch.int32)
    made = make_tiles(slots, num_slots, most_used)
    assert made.num_tiles <= num_tokens // made.tile_size + most_used + 2
    seen: list[int] = []
    for slot, first, count in made.table.T.tolist():
        assert 0 <= count <= made.tile_size
        tokens = made.order[first : first + count].tolist()
        assert len(tokens) == count
        assert all(slots[token] == slot for token in tokens)
        seen += tokens
    assert sorted(seen) == list(range(num_tokens))


ADAPTER_CASES: dict[str, Run] = {
    "one-token": partial(adapters, slots=[0], ranks=[4]),
    "one-token-of-none": partial(adapters, slots=[-1], ranks=[4]),
    "decode": partial(
        adapters, slots=[2, -1, 0, 0, 3, 2, -1, 2], ranks=[16, None, 1, 9], is_silu=False
    ),
    "decode-by-token": partial(
        adapters, slots=[4, -1, 4, 0, 4, 2], ranks=[16, None, 20, None, 9, 1, 3], max_rank=32
    ),
    "decode-ranks": partial(
        adapters, slots=[3, 1, 0, -1, 2, 3], ranks=[8, 40, 100, 128], max_rank=128
    ),
    "odd-rank": partial(adapters, slots=[1, 1, 0], ranks=[33, 20], max_rank=33),
    "tiles": partial(
        adapters,
        slots=[index % 3 - 1 for index in range(70)],
        ranks=[16, 3],
        max_rank=16,
        is_silu=False,
    ),
    "prefill": partial(
        adapters, slots=[0] * 130 + [-1] * 3 + [2] * 65, ranks=[16, None, 24], max_rank=32
    ),
    "wide": partial(
        adapters, slots=[1, 0, 1], ranks=[16, 16], in_features=640, inner=520
    ),
    "rows-one-token": partial(adapters, slots=[1], ranks=[None, 16, 4], has_rows=True),
    "rows-decode": partial(
        adapters, slots=[2, -1, 0, 0, 3, 2, -1, 2], ranks=[16, None, 1, 9], has_rows=True
    ),
    "rows-ranks": partial(
        adapters, slots=[3, 1, 0, -1, 2, 3], ranks=[8, 40, 100, 128], max_rank=128, has_rows=True
    ),
    "rows-tiles": partial(
        adapters,
        slots=[index % 3 - 1 for index in range(70)],
        ranks=[48, 3],
        max_rank=48,
        is_silu=False,
        has_rows=True,
    ),
    "few-one-token": partial(
        adapters, slots=[47], ranks=[16, *[None] * 46, 16], has_rows=True
    ),
    "few-decode": partial(
        adapters, slots=[47, -1, 0, 0, 20, 47], ranks=[16, *[None] * 19, 5, *[None] * 26, 16],
        has_rows=True,
    ),
    "few-tiles": partial(
        adapters, slots=[(-1, 0, 9)[index % 3] for index in range(70)],
        ranks=[16, *[None] * 8, 3, *[None] * 38], has_rows=True,
    ),
    "company": partial(company, num_tokens=70),
    "tiles-few": partial(tiles, num_tokens=5, num_slots=9, most_used=9),
    "tiles-many": partial(tiles, num_tokens=300, num_slots=3, most_used=3),
    "tiles-few-used": partial(tiles, num_tokens=300, num_slots=70, most_used=4),
    "tiles-one": partial(tiles, num_tokens=1, num_slots=1, most_used=1),
}  # fmt: skip


def check(name: str, device: torch.device, dtype: torch.dtype, seed: int) -> None:
    """Run one case; an AssertionError says what differs."""
    torch.manual_seed(seed)
    ADAPTER_CASES[name](Trial(device, dtype, seed))


if __name__ == "__main__":
    report(sys.argv[1:] or list(ADAPTER_CASES), check)

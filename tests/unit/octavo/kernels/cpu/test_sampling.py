"""Draws against the reference, their statistics, and their independence of other rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernel_parity import SAMPLING_BATCHES, Trial, assert_same_draw, sampling_batch, with_masks
from octavo.kernels.cpu import CpuKernels
from octavo.kernels.interface import SamplingBatch
from octavo.kernels.philox import gumbel_noise, philox4x32
from octavo.kernels.reference import mask_logits

TRIAL = Trial(torch.device("cpu"), torch.float32, 0)


def hard_logits(num_rows: int, vocab_size: int) -> Tensor:
    """Random, a masked half, ties, and a row with one token left."""
    logits = 3 * torch.randn(num_rows, vocab_size)
    logits[0, : vocab_size // 2] = -math.inf
    logits[1, 3::7] = logits[1].max()
    if num_rows > 2:
        logits[2] = -math.inf
        logits[2, vocab_size - 1] = -3.0
    return logits


@pytest.mark.parametrize("vocab_size", [1000, 777, 7, 5000])
@pytest.mark.parametrize("name", SAMPLING_BATCHES)
def test_draws_are_the_references(
    kernels: CpuKernels, num_threads: int, name: str, vocab_size: int
) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        batch = SAMPLING_BATCHES[name](TRIAL, 7)
        logits = hard_logits(7, vocab_size)
        assert_same_draw(kernels.sample(logits, batch), logits, batch)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 0.01, 30.0], ids=str)
@pytest.mark.parametrize("name", ["random", "top-k", "top-p", "min-p", "all-filters"])
def test_flat_and_steep_rows_are_drawn_as_the_reference_does(
    kernels: CpuKernels, name: str, spread: float
) -> None:
    torch.manual_seed(0)
    batch = SAMPLING_BATCHES[name](TRIAL, 6)
    logits = 5 + spread * torch.randn(6, 3000)
    assert_same_draw(kernels.sample(logits, batch), logits, batch)


@pytest.mark.parametrize("vocab_size", [1000, 777, 7])
@pytest.mark.parametrize("name", SAMPLING_BATCHES)
def test_masked_rows_draw_what_their_mask_allows(
    kernels: CpuKernels, num_threads: int, name: str, vocab_size: int
) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        batch = with_masks(SAMPLING_BATCHES[name](TRIAL, 7), vocab_size)
        assert batch.masks is not None
        assert batch.mask_rows is not None
        logits = 3 * torch.randn(7, vocab_size)
        expected = mask_logits(logits, batch.masks, batch.mask_rows)
        plain = replace(batch, masks=None, mask_rows=None)
        assert_same_draw(kernels.sample(logits.clone(), batch), expected, plain)


def test_greedy_takes_the_lowest_id_on_a_tie(kernels: CpuKernels) -> None:
    logits = torch.zeros(3, 1003)
    logits[0, [40, 41, 900]] = 2.0
    logits[1, 1002] = 1.0
    logits[2] = -math.inf
    batch = sampling_batch(TRIAL, 3, [0.0])
    assert kernels.sample(logits, batch).tolist() == [40, 1002, 0]


def test_a_masked_token_is_never_drawn(kernels: CpuKernels) -> None:
    torch.manual_seed(0)
    logits = torch.full((200, 64), -math.inf)
    logits[:, [3, 17]] = torch.tensor([0.0, -60.0])
    batch = sampling_batch(TRIAL, 200, [1.0])
    assert set(kernels.sample(logits, batch).tolist()) <= {3, 17}


@pytest.mark.parametrize(
    ("counter", "key", "word"),
    [
        ((0, 0), 0, 0x6627E8D5),
        # Salmon et al.'s other vectors use all four counter words; these were computed
        # with octavo.kernels.philox, which is checked against the paper's.
        ((0x243F6A88, 0x85A308D3), 0x299F31D0A4093822, None),
        ((0xFFFFFFF0, 0xFFFFFFFF), -1, None),
    ],
)
def test_random_words_are_philox(
    kernels: CpuKernels, counter: tuple[int, int], key: int, word: int | None
) -> None:
    lanes = kernels.library.lanes
    words = torch.empty(4, lanes, dtype=torch.int32)
    kernels.library.philox(*counter, key, words.data_ptr())
    unsigned = words.long() & 0xFFFFFFFF
    if word is not None:
        assert unsigned[0, 0] == word
    assert torch.equal(unsigned, reference_words(counter, key, lanes))


def reference_words(counter: tuple[int, int], key: int, count: int) -> Tensor:
    """``[4, count]``."""

    ids = (counter[0] + torch.arange(count)) & 0xFFFFFFFF
    zero = torch.zeros((), dtype=torch.int64)
    key_words = (torch.tensor(key & 0xFFFFFFFF), torch.tensor((key >> 32) & 0xFFFFFFFF))
    return torch.stack(philox4x32((ids, torch.tensor(counter[1]), zero, zero), key_words))


def many_draws(kernels: CpuKernels, row: Tensor, num_draws: int, **filters: float) -> Tensor:
    """Counts of each token over draws with seeds 0, 1, 2 ... at position 5."""
    top_k = torch.full((num_draws,), int(filters.get("top_k", 0)), dtype=torch.int32)
    batch = SamplingBatch(
        temperature=torch.ones(num_draws),
        top_k=top_k,
        top_p=torch.full((num_draws,), float(filters.get("top_p", 1.0))),
        min_p=torch.full((num_draws,), float(filters.get("min_p", 0.0))),
        seeds=torch.arange(num_draws),
        positions=torch.full((num_draws,), 5, dtype=torch.int32),
        all_greedy=False,
        any_filter=bool(filters),
    )
    ids = kernels.sample(row.expand(num_draws, -1), batch)
    return torch.bincount(ids, minlength=len(row))


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_follow_the_distribution(kernels: CpuKernels) -> None:
    torch.manual_seed(1)
    logits = torch.randn(40)
    counts = many_draws(kernels, logits, 20000)
    # The 99.9 % point of chi-square with 39 degrees of freedom is 72.1.
    assert chi_square(counts, logits.softmax(0)) < 72.1


def test_filtered_draws_follow_what_the_filters_leave(kernels: CpuKernels) -> None:
    probabilities = torch.tensor([0.35, 0.25, 0.15, 0.1, 0.08, 0.04, 0.03])
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    logits = probabilities[order].log()
    cases: list[tuple[dict[str, float], int]] = [
        ({"top_k": 3}, 3),
        ({"top_p": 0.7}, 3),
        ({"top_p": 0.2}, 1),
        ({"min_p": 0.25}, 4),
        ({"top_k": 5, "top_p": 0.9}, 4),
        ({"top_k": 5, "top_p": 0.9, "min_p": 0.5}, 2),
    ]
    for filters, num_kept in cases:
        counts = many_draws(kernels, logits, 5000, **filters)
        kept = order < num_kept
        assert counts[~kept].sum() == 0, filters
        left = probabilities[order][kept]
        # The 99.9 % point with 4 degrees of freedom, the most here, is 18.5.
        assert chi_square(counts[kept], left / left.sum()) < 18.5, filters


def test_a_draw_depends_on_its_own_row_alone(kernels: CpuKernels) -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 2000)
    batch = SAMPLING_BATCHES["all-filters"](TRIAL, 9)
    together = kernels.sample(logits, batch)
    for row in range(9):
        alone = SamplingBatch(
            temperature=batch.temperature[row : row + 1],
            top_k=batch.top_k[row : row + 1],
            top_p=batch.top_p[row : row + 1],
            min_p=batch.min_p[row : row + 1],
            seeds=batch.seeds[row : row + 1],
            positions=batch.positions[row : row + 1],
            all_greedy=False,
            any_filter=True,
        )
        assert kernels.sample(logits[row : row + 1], alone)[0] == together[row]


def test_equal_logits_leave_the_choice_to_the_noise(kernels: CpuKernels) -> None:
    torch.manual_seed(0)
    batch = sampling_batch(TRIAL, 8, [1.0])
    ids = kernels.sample(torch.zeros(8, 5000), batch)
    expected = gumbel_noise(batch.seeds, batch.positions, 5000).argmax(dim=1)
    assert torch.equal(ids, expected)

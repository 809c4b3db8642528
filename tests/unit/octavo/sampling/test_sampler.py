"""The sampler against formulas written out per row, and against transformers' processors."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.kernels.interface import SamplingBatch
from octavo.kernels.reference import ReferenceKernels
from octavo.sampling.sampler import Sampler
from octavo.sampling_params import SamplingParams

VOCAB = 50
CPU = torch.device("cpu")


class RecordingKernels(ReferenceKernels):
    """Keeps what reaches the draw."""

    def __init__(self) -> None:
        self.logits = torch.empty(0)
        self.batch: SamplingBatch | None = None

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        self.logits, self.batch = logits.clone(), batch
        return super().sample(logits, batch)


def new_sampler(num_rows: int = 8) -> tuple[Sampler, RecordingKernels]:
    kernels = RecordingKernels()
    return Sampler(kernels, VOCAB, num_rows, CPU), kernels


def greedy(**arguments: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=100, **arguments)


def random_logits(num_rows: int, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def penalised(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> list[float]:
    """The definition, one token id at a time."""
    result = []
    for token_id, logit in enumerate(logits):
        if token_id in prompt or token_id in output:
            penalty = params.repetition_penalty
            logit = logit / penalty if logit > 0 else logit * penalty
        logit -= params.frequency_penalty * output.count(token_id)
        logit -= params.presence_penalty * (token_id in output)
        result.append(logit)
    return result


PENALTIES = [
    pytest.param({"repetition_penalty": 1.7}, id="repetition"),
    pytest.param({"repetition_penalty": 0.6}, id="repetition-below-one"),
    pytest.param({"presence_penalty": 1.3}, id="presence"),
    pytest.param({"presence_penalty": -1.3}, id="presence-negative"),
    pytest.param({"frequency_penalty": 0.9}, id="frequency"),
    pytest.param(
        {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.4}, id="all"
    ),
]


@pytest.mark.parametrize("arguments", PENALTIES)
def test_penalties_follow_their_definition(arguments: dict[str, float]) -> None:
    sampler, kernels = new_sampler()
    params = greedy(**arguments)
    prompt, output = [1, 2, 2, 3, 40], [2, 7, 7, 7, 9]
    sampler.admit(2, greedy(), 0, [4, 4], [4], set())
    sampler.admit(5, params, 0, prompt, output, set())
    logits = random_logits(2)
    expected = penalised(logits[1].tolist(), params, prompt, output)
    plain = logits[0].clone()
    sampler.sample(logits, [2, 5], [3, 10])
    torch.testing.assert_close(kernels.logits[1], torch.tensor(expected))
    torch.testing.assert_close(kernels.logits[0], plain, rtol=0, atol=0)


def test_drawn_tokens_are_penalised_without_the_host_telling() -> None:
    sampler, kernels = new_sampler()
    params = {row: greedy(frequency_penalty=0.1 * row + 0.5) for row in (1, 3, 4)}
    prompts = {row: [row, 30] for row in params}
    outputs: dict[int, list[int]] = {row: [] for row in params}
    for row in params:
        sampler.admit(row, params[row], 0, prompts[row], [], set())
    choose = random.Random(0)
    for step in range(12):
        rows = choose.sample(sorted(params), k=choose.randint(1, 3))
        logits = random_logits(len(rows), seed=step % 3)
        before = logits.clone()
        positions = [2 + len(outputs[row]) for row in rows]
        drawn = sampler.sample(logits, rows, positions).token_ids.tolist()
        for index, row in enumerate(rows):
            expected = penalised(before[index].tolist(), params[row], prompts[row], outputs[row])
            torch.testing.assert_close(kernels.logits[index], torch.tensor(expected))
            outputs[row].append(drawn[index])
    assert any(len(set(tokens)) < len(tokens) for tokens in outputs.values())


def test_readmitted_row_is_penalised_as_if_it_had_never_left() -> None:
    sampler, kernels = new_sampler()
    params = greedy(presence_penalty=1.0, frequency_penalty=0.5)
    sampler.admit(0, params, 0, [1], [], set())
    output = [
        int(sampler.sample(random_logits(1, seed), [0], [1 + seed]).token_ids) for seed in range(4)
    ]
    sampler.sample(random_logits(1, 9), [0], [5])
    uninterrupted = kernels.logits
    sampler.release(0)
    sampler.admit(1, greedy(repetition_penalty=2.0), 0, [8, 9], [10], set())  # takes the slot
    sampler.admit(6, params, 0, [1], output, set())
    sampler.sample(random_logits(1, 9), [6], [5])
    torch.testing.assert_close(kernels.logits, uninterrupted, rtol=0, atol=0)


def test_slot_taken_over_remembers_nothing_of_the_request_before() -> None:
    sampler, kernels = new_sampler()
    params = greedy(repetition_penalty=1.8, presence_penalty=0.5)
    sampler.admit(0, params, 0, [5, 6], [7, 7], set())
    sampler.release(0)
    sampler.admit(0, params, 0, [1], [2], set())
    logits = random_logits(1)
    expected = penalised(logits[0].tolist(), params, [1], [2])
    sampler.sample(logits, [0], [2])
    torch.testing.assert_close(kernels.logits[0], torch.tensor(expected))


def test_long_texts_are_penalised_as_short_ones() -> None:
    sampler, kernels = new_sampler()
    params = greedy(repetition_penalty=1.2, frequency_penalty=0.01)
    prompts = {0: [1, 2, 3], 1: list(range(VOCAB))}
    outputs: dict[int, list[int]] = {0: [4] * 300, 1: []}
    for row in (0, 1):
        sampler.admit(row, params, 0, prompts[row], outputs[row], set())
    for step in range(600):  # past the length the lists of seen ids start with
        logits = random_logits(2, seed=step)
        before = logits.clone()
        drawn = sampler.sample(logits, [0, 1], [303 + step, VOCAB + step]).token_ids.tolist()
        if step % 50 == 0 or step > 590:
            expected = [
                penalised(before[row].tolist(), params, prompts[row], outputs[row])
                for row in (0, 1)
            ]
            torch.testing.assert_close(kernels.logits, torch.tensor(expected))
        outputs[0].append(drawn[0])
        outputs[1].append(drawn[1])


def test_prompt_with_more_ids_than_the_lists_start_with() -> None:
    vocab_size = 2000
    kernels = RecordingKernels()
    sampler = Sampler(kernels, vocab_size, 1, CPU)
    params = greedy(repetition_penalty=1.5)
    prompt = list(range(0, vocab_size, 2))
    sampler.admit(0, params, 0, prompt, [], set())
    logits = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(0))
    expected = penalised(logits[0].tolist(), params, prompt, [])
    sampler.sample(logits, [0], [len(prompt)])
    torch.testing.assert_close(kernels.logits[0], torch.tensor(expected))


def test_more_penalised_rows_than_the_first_tables_hold() -> None:
    sampler, kernels = new_sampler(num_rows=40)
    params = greedy(repetition_penalty=1.5)
    for row in range(40):
        sampler.admit(row, params, 0, [row], [(row + 1) % VOCAB], set())
    logits = random_logits(40)
    expected = [
        penalised(logits[row].tolist(), params, [row], [(row + 1) % VOCAB]) for row in range(40)
    ]
    sampler.sample(logits, list(range(40)), [2] * 40)
    torch.testing.assert_close(kernels.logits, torch.tensor(expected))


def test_tables_are_allocated_for_penalised_rows_alone() -> None:
    sampler, _ = new_sampler()
    for row in range(8):
        sampler.admit(row, greedy(), 0, [row], [], set())
    assert sampler.num_penalty_slots == 0
    for _ in range(20):  # slots are given back
        sampler.admit(3, greedy(presence_penalty=1.0), 0, [1], [], set())
    assert sampler.num_penalty_slots < 8


def test_penalties_agree_with_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    sampler, kernels = new_sampler()
    prompt, output = [3, 5, 5, 8], [1, 5, 9]
    sampler.admit(0, greedy(repetition_penalty=1.3), 0, prompt, output, set())
    logits = random_logits(1)
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    expected = processor(torch.tensor([prompt + output]), logits.clone())
    sampler.sample(logits, [0], [7])
    torch.testing.assert_close(kernels.logits, expected)


def test_stop_tokens_are_barred_until_min_tokens_are_drawn() -> None:
    sampler, _ = new_sampler()
    sampler.admit(0, greedy(min_tokens=3), 0, [1, 2], [], {7, 9})
    sampler.admit(1, greedy(min_tokens=1), 0, [1], [], {7})
    sampler.admit(2, greedy(), 0, [1], [], {7})
    drawn = []
    for step in range(5):
        logits = torch.zeros(3, VOCAB)
        logits[:, 7], logits[:, 9], logits[:, 4] = 3.0, 2.0, 1.0
        drawn.append(sampler.sample(logits, [0, 1, 2], [2 + step, 1 + step, 1 + step]))
    tokens = torch.stack([step.token_ids for step in drawn]).T.tolist()
    assert tokens == [[4, 4, 4, 7, 7], [9, 7, 7, 7, 7], [7, 7, 7, 7, 7]]


def test_preempted_row_keeps_its_stop_tokens_barred() -> None:
    sampler, _ = new_sampler()
    logits = torch.zeros(1, VOCAB)
    logits[:, 7] = 3.0
    for num_outputs in range(5):
        sampler.admit(0, greedy(min_tokens=3), 0, [1, 2], [5] * num_outputs, {7})
        token_id = sampler.sample(logits.clone(), [0], [2 + num_outputs]).token_ids.item()
        assert (token_id == 7) == (num_outputs >= 3)


def test_logit_bias_is_added_before_penalties() -> None:
    sampler, kernels = new_sampler()
    params = greedy(logit_bias={4: -2.5, 11: 100.0}, repetition_penalty=2.0)
    sampler.admit(3, params, 0, [4], [], set())
    sampler.admit(1, greedy(logit_bias={0: 1.0}), 0, [4], [], set())
    logits = random_logits(2)
    expected = logits.clone()
    expected[0, 0] += 1.0
    expected[1, 4] -= 2.5
    expected[1, 11] += 100.0
    expected[1] = torch.tensor(penalised(expected[1].tolist(), params, [4], []))
    tokens = sampler.sample(logits, [1, 3], [1, 1]).token_ids
    torch.testing.assert_close(kernels.logits, expected)
    assert tokens[1] == 11


def test_ids_outside_the_vocabulary_change_nothing() -> None:
    sampler, kernels = new_sampler()
    params = greedy(logit_bias={VOCAB: 5.0}, min_tokens=2, presence_penalty=1.0)
    sampler.admit(0, params, 0, [VOCAB + 3, 1], [], {VOCAB, 10**6})
    logits = random_logits(1)
    before = logits.clone()
    sampler.sample(logits, [0], [2])
    torch.testing.assert_close(kernels.logits, before, rtol=0, atol=0)


def test_parameters_of_each_row_reach_the_kernel() -> None:
    sampler, kernels = new_sampler()
    sampler.admit(
        6, SamplingParams(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1), 2**64 - 1, [1], [], set()
    )
    sampler.admit(0, greedy(top_k=3), 17, [1], [], set())
    sampler.admit(2, SamplingParams(top_k=VOCAB), -4, [1], [], set())
    sampler.sample(random_logits(3), [2, 6, 0], torch.tensor([5, 6, 7]))
    batch = kernels.batch
    assert batch is not None
    torch.testing.assert_close(batch.temperature, torch.tensor([1.0, 0.7, 0.0]))
    torch.testing.assert_close(batch.top_p, torch.tensor([1.0, 0.9, 1.0]))
    torch.testing.assert_close(batch.min_p, torch.tensor([0.0, 0.1, 0.0]))
    assert batch.top_k.tolist()[:2] == [0, 5]
    assert batch.seeds.tolist() == [-4, -1, 17]
    assert batch.positions.tolist() == [5, 6, 7]
    assert (batch.all_greedy, batch.any_filter) == (False, True)
    for column in (batch.temperature, batch.top_k, batch.top_p, batch.min_p, batch.seeds):
        assert column.is_contiguous()


def test_nearly_zero_temperature_is_greedy_beside_random_rows() -> None:
    sampler, kernels = new_sampler()
    sampler.admit(0, SamplingParams(temperature=1e-9), 0, [1], [], set())
    sampler.admit(1, SamplingParams(), 0, [1], [], set())
    sampler.sample(random_logits(2), [0, 1], [1, 1])
    assert kernels.batch is not None
    assert kernels.batch.temperature.tolist() == [0.0, 1.0]


def test_new_request_in_a_sampled_row_replaces_its_parameters() -> None:
    sampler, _ = new_sampler()
    for token_id in (5, 6):
        sampler.admit(0, greedy(logit_bias={token_id: 100.0}), 0, [1], [], set())
        assert sampler.sample(torch.zeros(1, VOCAB), [0], [1]).token_ids.tolist() == [token_id]
    sampler.release(0)
    sampler.release(0)
    sampler.admit(0, greedy(), 0, [1], [], set())
    assert sampler.sample(torch.zeros(1, VOCAB), [0], [1]).token_ids.tolist() == [0]


def test_greedy_takes_the_lowest_id_on_a_tie() -> None:
    sampler, _ = new_sampler()
    logits = torch.zeros(2, VOCAB)
    logits[0, [9, 30]] = 2.0
    for row in range(2):
        sampler.admit(row, greedy(), 0, [1], [], set())
    assert sampler.sample(logits, [0, 1], [1, 1]).token_ids.tolist() == [9, 0]


def draw_text(sampler: Sampler, row: int, others: Sequence[int], num_tokens: int) -> list[int]:
    """Tokens of a row whose logits depend on its position, drawn beside other rows."""
    tokens = []
    for position in range(3, 3 + num_tokens):
        rows = [*others, row]
        logits = random_logits(len(rows), seed=position)
        logits[-1] = random_logits(1, seed=1000 + position)[0]
        positions = [position * 7 % 11 for _ in others] + [position]
        tokens.append(int(sampler.sample(logits, rows, positions).token_ids[-1]))
    return tokens


def test_seeded_text_is_the_same_alone_and_in_any_company() -> None:
    params = SamplingParams(temperature=1.5, top_p=0.95, repetition_penalty=1.1, max_tokens=None)
    sampler, _ = new_sampler()
    sampler.admit(0, params, 1234, [1, 2, 3], [], set())
    alone = draw_text(sampler, 0, [], 20)

    sampler, _ = new_sampler()
    sampler.admit(1, greedy(logprobs=3), 5, [1], [], set())
    sampler.admit(2, SamplingParams(presence_penalty=1.0), 1234, [2], [], set())
    sampler.admit(4, SamplingParams(top_k=2), 9, [2], [], set())
    sampler.admit(7, params, 1234, [1, 2, 3], [], set())
    assert draw_text(sampler, 7, [4, 1, 2], 20) == alone
    assert len(set(alone)) > 5

    # preempted after eight tokens, back in another row
    sampler, _ = new_sampler()
    sampler.admit(3, params, 1234, [1, 2, 3], alone[:8], set())
    resumed = []
    for position in range(11, 23):
        logits = random_logits(1, seed=1000 + position)
        resumed.append(int(sampler.sample(logits, [3], [position]).token_ids))
    assert resumed == alone[8:]


def test_other_seeds_give_other_texts() -> None:
    texts = []
    for seed in range(5):
        sampler, _ = new_sampler()
        sampler.admit(0, SamplingParams(temperature=2.0), seed, [1, 2, 3], [], set())
        texts.append(tuple(draw_text(sampler, 0, [], 10)))
    assert len(set(texts)) == 5


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"temperature": 1.3}, id="temperature"),
        pytest.param({"top_k": 4}, id="top_k"),
        pytest.param({"presence_penalty": 1.5}, id="presence"),
    ],
)
def test_draws_are_distributed_as_asked(arguments: dict[str, Any]) -> None:
    params = SamplingParams(**arguments)
    num_rows = 4000
    sampler, _ = new_sampler(num_rows)
    for row in range(num_rows):
        sampler.admit(row, params, row * 7919, [0], [3], set())
    logits = random_logits(1)[0] / 2
    scores = torch.tensor(penalised(logits.tolist(), params, [0], [3])) / params.temperature
    if params.top_k:
        scores[scores < scores.sort(descending=True).values[params.top_k - 1]] = -math.inf
    expected = scores.softmax(0) * num_rows
    drawn = sampler.sample(
        logits.repeat(num_rows, 1), list(range(num_rows)), [2] * num_rows
    ).token_ids
    counts = torch.bincount(drawn, minlength=VOCAB).double()
    assert not counts[expected == 0].any()
    # Pearson's chi-square over the tokens that are expected often enough for it
    often = expected >= 5
    chi_square = ((counts - expected)[often] ** 2 / expected[often]).sum().item()
    degrees = int(often.sum()) - 1
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees)

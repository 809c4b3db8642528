"""Log probabilities tell what the model thought before the sampler touched it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.kernels.reference import ReferenceKernels
from octavo.outputs import TokenLogprobs
from octavo.sampling.logprobs import likeliest, normalized
from octavo.sampling.sampler import SampledTokens, Sampler
from octavo.sampling_params import SamplingParams

VOCAB = 40


def sample(logits: torch.Tensor, *params: SamplingParams) -> SampledTokens:
    sampler = Sampler(ReferenceKernels(), VOCAB, len(params), torch.device("cpu"))
    for row, of_row in enumerate(params):
        sampler.admit(row, of_row, row, [1], [2], {3})
    return sampler.sample(logits, list(range(len(params))), [2] * len(params))


def logprobs_of(sampled: SampledTokens) -> list[TokenLogprobs | None]:
    logprobs = sampled.to_host_logprobs()
    assert logprobs is not None
    return logprobs


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="plain"),
        pytest.param({"temperature": 0.3, "top_k": 2}, id="temperature"),
        pytest.param({"repetition_penalty": 1.9, "frequency_penalty": 2.0}, id="penalties"),
        pytest.param({"logit_bias": {5: 100.0}}, id="bias"),
        pytest.param({"min_tokens": 4}, id="barred"),
    ],
)
def test_logprobs_are_of_the_raw_logits(arguments: dict[str, Any]) -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1)) * 4
    expected = logits.double().log_softmax(-1)
    asked = SamplingParams(logprobs=5, **arguments)
    sampled = sample(logits.clone(), SamplingParams(**arguments), asked, asked)
    first, *others = logprobs_of(sampled)
    assert first is None
    for row, got in enumerate(others, start=1):
        assert got is not None
        assert got.token_id == sampled.token_ids[row]
        assert got.logprob == pytest.approx(expected[row, got.token_id].item(), abs=1e-5)
        assert got.rank == 1 + int((logits[row] > logits[row, got.token_id]).sum())
        top = expected[row].topk(5)
        assert got.top_token_ids == top.indices.tolist()
        assert got.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-5)


def test_each_row_gets_as_many_alternatives_as_it_asked_for() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(2))
    got = logprobs_of(
        sample(logits, *(SamplingParams(temperature=0.0, logprobs=num) for num in (0, 3, 20)))
    )
    assert [len(row.top_token_ids) for row in got if row is not None] == [0, 3, 20]
    assert [len(row.top_logprobs) for row in got if row is not None] == [0, 3, 20]
    assert all(row is not None and row.rank == 1 for row in got)


def test_only_the_chosen_token_when_zero_alternatives_are_asked_of_all() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 6] = 1.0
    (got,) = logprobs_of(sample(logits, SamplingParams(temperature=0.0, logprobs=0)))
    assert got is not None
    assert (got.token_id, got.rank, got.top_token_ids) == (6, 1, [])


def test_no_logprobs_when_none_asked() -> None:
    assert sample(torch.zeros(1, VOCAB), SamplingParams()).to_host_logprobs() is None


def test_of_equally_likely_tokens_the_lowest_ids_are_told() -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0, 3.0, 1.0, -0.5, 1.0], [0.0, -1.0] + 5 * [-3.5]])
    assert likeliest(logits, 4).tolist() == [[1, 3, 0, 4], [0, 1, 2, 3]]
    everything = likeliest(torch.randn(5, 999).round(decimals=1), 999)
    assert all(sorted(row) == list(range(999)) for row in everything.tolist())


@pytest.mark.parametrize("vocab_size", [4000, 1237])
def test_a_row_has_the_same_bits_alone_and_among_others(vocab_size: int) -> None:
    logits = 9 * torch.randn(33, vocab_size, generator=torch.Generator().manual_seed(0))
    together = normalized(logits)
    assert torch.allclose(together.double(), logits.double().log_softmax(1), atol=1e-4)
    for row in range(33):
        assert torch.equal(normalized(logits[row : row + 1].clone())[0], together[row])

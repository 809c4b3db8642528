"""The sampler on a CUDA device draws what it draws on the host, and never waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from octavo.kernels.interface import SamplingBatch
from octavo.kernels.reference import ReferenceKernels
from octavo.outputs import TokenLogprobs
from octavo.sampling.logprobs import likeliest, normalized
from octavo.sampling.sampler import Sampler
from octavo.sampling_params import SamplingParams

pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode")

VOCAB = 5000
PARAMS = [
    SamplingParams(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.3, logprobs=3),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, logit_bias={4: 2.0, 9: -1.0}, min_tokens=5),
    SamplingParams(temperature=0.0, presence_penalty=1.0),
]


class ArgmaxKernels(ReferenceKernels):
    """A draw that cannot wait for the device itself."""

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return logits.argmax(dim=-1)


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Any wait for the device is an error inside."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def draw(device: torch.device) -> tuple[list[list[int]], list[list[TokenLogprobs | None] | None]]:
    """Tokens and log probabilities of 300 steps, with requests coming and batches changing."""
    sampler = Sampler(ArgmaxKernels(), VOCAB, 8, device)
    logits = (torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0)) * 2).to(device)
    positions = torch.full((4,), 2, device=device)
    tokens, logprobs = [], []
    for step in range(300):
        rows = [0, 1, 2, 3] if step % 50 < 40 else [3, 1]
        step_logits = logits.roll(step % 5, 1)[: len(rows)].clone()
        with no_waiting(device):
            if step % 99 == 0:  # eight rows outgrow the first penalty tables
                for row, params in enumerate(PARAMS * 2):
                    sampler.admit(row, params, row, [row, 1], [], {7})
            sampled = sampler.sample(step_logits, rows, positions[: len(rows)] + step % 99)
        tokens.append(sampled.token_ids.tolist())
        logprobs.append(sampled.to_host_logprobs())
    return tokens, logprobs


def test_tokens_are_the_hosts_and_no_step_waits_for_the_device() -> None:
    with torch.inference_mode():
        host_tokens, host_logprobs = draw(torch.device("cpu"))
        tokens, logprobs = draw(torch.device("cuda"))
    assert tokens == host_tokens
    assert len({tuple(step) for step in tokens}) > 50
    for on_device, on_host in zip(logprobs, host_logprobs, strict=True):
        for got, expected in zip(on_device or [], on_host or [], strict=True):
            assert (got is None) == (expected is None)
            if got is not None and expected is not None:
                assert (got.token_id, got.rank) == (expected.token_id, expected.rank)
                assert got.logprob == pytest.approx(expected.logprob, abs=1e-4)


@pytest.mark.parametrize("vocab_size", [5000, 128256, 32003])
def test_log_probabilities_of_a_row_do_not_depend_on_the_others(vocab_size: int) -> None:
    logits = (9 * torch.randn(70, vocab_size, device="cuda")).bfloat16().float()
    together, ids = normalized(logits), likeliest(logits, 20)
    for first, last in [(0, 1), (3, 5), (7, 40), (69, 70)]:
        alone = logits[first:last].clone()
        assert torch.equal(normalized(alone), together[first:last])
        assert torch.equal(likeliest(alone, 20), ids[first:last])

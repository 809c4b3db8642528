"""Whatever comes and goes, each row's logits are changed by its own request's rules alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from octavo.kernels.interface import SamplingBatch
from octavo.kernels.reference import ReferenceKernels
from octavo.sampling.sampler import Sampler
from octavo.sampling_params import SamplingParams

VOCAB = 12
NUM_ROWS = 6
TOKENS = st.integers(0, VOCAB - 1)
PENALTY = st.sampled_from([0.0, 0.5, -1.5])


class RecordingKernels(ReferenceKernels):
    """Keeps what reaches the draw."""

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        self.logits = logits.clone()
        return super().sample(logits, batch)


@dataclass
class Expected:
    """One request, and its rules applied one token id at a time."""

    params: SamplingParams
    prompt: list[int]
    stop_ids: set[int]
    output: list[int] = field(default_factory=list)

    def edit(self, logits: list[float]) -> list[float]:
        return [self._edit(token_id, logit) for token_id, logit in enumerate(logits)]

    def _edit(self, token_id: int, logit: float) -> float:
        params = self.params
        if len(self.output) < params.min_tokens and token_id in self.stop_ids:
            return -math.inf
        logit += params.logit_bias.get(token_id, 0.0)
        if token_id in self.prompt or token_id in self.output:
            penalty = params.repetition_penalty
            logit = logit / penalty if logit > 0 else logit * penalty
        logit -= params.frequency_penalty * self.output.count(token_id)
        return logit - params.presence_penalty * (token_id in self.output)


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 2.0]),
    presence_penalty=PENALTY,
    frequency_penalty=PENALTY,
    min_tokens=st.integers(0, 4),
    logit_bias=st.dictionaries(TOKENS, st.sampled_from([-3.0, 2.0]), max_size=2),
    logprobs=st.sampled_from([None, 0, 2]),
)


class SamplerMachine(RuleBasedStateMachine):
    """Admits, preempts, releases and samples at random, beside the rules written out."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = RecordingKernels()
        self.sampler = Sampler(self.kernels, VOCAB, NUM_ROWS, torch.device("cpu"))
        self.held: dict[int, Expected] = {}
        self.step = 0

    @rule(
        row=st.integers(0, NUM_ROWS - 1),
        params=PARAMS,
        prompt=st.lists(TOKENS, min_size=1, max_size=5),
        stop_ids=st.sets(TOKENS, max_size=2),
    )
    def admit(
        self, row: int, params: SamplingParams, prompt: list[int], stop_ids: set[int]
    ) -> None:
        self.held[row] = Expected(params, prompt, stop_ids)
        self.sampler.admit(row, params, row, prompt, [], stop_ids)

    @rule(row=st.integers(0, NUM_ROWS - 1))
    def release(self, row: int) -> None:
        self.held.pop(row, None)
        self.sampler.release(row)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), target_row=st.integers(0, NUM_ROWS - 1))
    def preempt_and_return(self, data: st.DataObject, target_row: int) -> None:
        row = data.draw(st.sampled_from(sorted(self.held)))
        request = self.held.pop(row)
        self.sampler.release(row)
        self.held[target_row] = request
        self.sampler.admit(
            target_row, request.params, row, request.prompt, request.output, request.stop_ids
        )

    @precondition(lambda self: self.held)
    @rule(data=st.data(), num_steps=st.integers(1, 3))
    def sample(self, data: st.DataObject, num_steps: int) -> None:
        rows = data.draw(st.lists(st.sampled_from(sorted(self.held)), min_size=1, unique=True))
        for _ in range(num_steps):
            self._sample(rows)

    def _sample(self, rows: list[int]) -> None:
        self.step += 1
        generator = torch.Generator().manual_seed(self.step)
        raw = torch.randn(len(rows), VOCAB, generator=generator)
        requests = [self.held[row] for row in rows]
        expected = [request.edit(row) for request, row in zip(requests, raw.tolist(), strict=True)]
        positions = [len(request.prompt) + len(request.output) for request in requests]
        sampled = self.sampler.sample(raw.clone(), rows, positions)
        torch.testing.assert_close(self.kernels.logits, torch.tensor(expected))
        logprobs = sampled.to_host_logprobs() or [None] * len(rows)
        for index, (request, of_row) in enumerate(zip(requests, logprobs, strict=True)):
            token_id = int(sampled.token_ids[index])
            request.output.append(token_id)
            assert (of_row is not None) == (request.params.logprobs is not None)
            if of_row is not None:
                exact = raw[index].log_softmax(0)[token_id].item()
                assert math.isclose(of_row.logprob, exact, abs_tol=1e-5)

    @invariant()
    def slots_are_given_back(self) -> None:
        # The tables double from four, so six rows never need more than eight slots.
        assert self.sampler.num_penalty_slots <= 8


TestSampler = SamplerMachine.TestCase
TestSampler.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)

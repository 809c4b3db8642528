"""Whether a greedy answer is the one that its prompt gets when it runs alone.

Tokens and their log probabilities bit for bit where the engine promises that. Else log
probabilities within a tolerance, and where rounding chose between two tokens, the one taken must be
as nearly as likely when the same text is computed alone. Knows nothing of why an answer may be
wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo import SamplingParams
from octavo.engine.core import EngineCore
from octavo.engine.intake import Intake
from octavo.engine.request_options import RequestOptions
from octavo.outputs import RequestUpdate, TokenLogprobs
from octavo.request import AdapterGeneration

_MOST_CORRECTIONS = 40
"""Near ties in one request; more are no accident."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a greedy request got, and of which adapter."""

    prompt: list[int]
    drawn: list[TokenLogprobs]
    digest: str | None


class AnswerCheck:
    """Of an engine that has nothing else to do."""

    def __init__(
        self, core: EngineCore, intake: Intake, *, is_exact: bool, tolerance: float
    ) -> None:
        """``tolerance``: of log probabilities, unless it is exact."""
        self._core = core
        self._intake = intake
        self._is_exact = is_exact
        self._tolerance = 0.0 if is_exact else tolerance
        self._num_alone = 0

    def check(self, answer: Answer, adapter: AdapterGeneration | None) -> tuple[int, str | None]:
        """Near ties between the answer and that of the same prompt alone, and what is wrong."""
        self._core.reset_prefix_cache()  # what others have left there may be what is wrong
        text, rest, ties = list(answer.prompt), answer.drawn, 0
        while rest:
            num_alike, fault = self._compare(rest, self._alone(text, len(rest), adapter))
            if fault or num_alike == len(rest):
                return ties, fault and f"after {len(text)} tokens: {fault}"
            text += [one.token_id for one in rest[:num_alike]]
            token, rest, ties = rest[num_alike].token_id, rest[num_alike + 1 :], ties + 1
            gap = self._gap(text, token, adapter)
            where = f"after {len(text)} tokens: {token}, which alone is less likely by {gap:.3f}"
            if self._is_exact or gap > self._tolerance or ties > _MOST_CORRECTIONS:
                return ties, f"{where}; the {ties}th of its kind in an answer"
            text.append(token)
        return ties, None

    def _compare(
        self, drawn: list[TokenLogprobs], alone: list[TokenLogprobs]
    ) -> tuple[int, str | None]:
        """How many tokens agree, and the first whose log probability does not."""
        for index, (one, other) in enumerate(zip(drawn, alone, strict=True)):
            if one.token_id != other.token_id:
                return index, None
            if abs(one.logprob - other.logprob) > self._tolerance:
                likely = f"log probability {one.logprob:.6f}, alone {other.logprob:.6f}"
                return index, f"{one.token_id} of {likely}"
        return len(drawn), None

    def _alone(
        self, prompt: list[int], count: int, adapter: AdapterGeneration | None
    ) -> list[TokenLogprobs]:
        params = greedy(count)
        return [
            one for update in self._run(prompt, params, adapter) for one in update.logprobs or []
        ]

    def _gap(self, prompt: list[int], token_id: int, adapter: AdapterGeneration | None) -> float:
        """How much more likely the likeliest next token is than this one, computed alone."""
        updates = self._run(prompt, greedy(1, logprobs=20), adapter)
        (logprobs,) = (one for update in updates for one in update.logprobs or [])
        among = dict(zip(logprobs.top_token_ids, logprobs.top_logprobs, strict=True))
        return max(among.values()) - among.get(token_id, -math.inf)

    def _run(
        self, prompt: list[int], params: SamplingParams, adapter: AdapterGeneration | None
    ) -> list[RequestUpdate]:
        self._num_alone += 1
        options = RequestOptions(adapter=adapter)
        self._core.submit(self._intake.prepare(f"alone-{self._num_alone}", prompt, params, options))
        updates = []
        while self._core.has_work:
            updates += self._core.step()
        return updates


def greedy(max_tokens: int, logprobs: int = 0) -> SamplingParams:
    """What is checked, and asked to check it."""
    return SamplingParams(
        temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=logprobs
    )

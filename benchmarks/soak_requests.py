"""The requests of a soak: of every kind that the engine knows, drawn by a seed."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from typing import Any

from answer_check import greedy

from octavo import SamplingParams
from octavo.engine.model_info import ModelInfo

_CHECKED_SHARE = 0.25
_ABORTED_SHARE = 0.12
_DEADLINE_SHARE = 0.05
_NUM_PREFIXES = 6
_NUM_PREFIXES_WITH_ADAPTERS = 2
"""As they are cached once for each adapter."""
_MOST_TOKENS_WITH_ADAPTERS = 256
"""An adapter keeps its slot until its running requests have ended: long ones would keep all others
waiting for longer than they may."""


@dataclass(slots=True)
class Asked:
    """What somebody wants."""

    number: int
    prompt: list[int]
    params: SamplingParams
    is_checked: bool
    abort_after: int | None
    """Tokens after which its client leaves."""
    priority: int
    timeout_s: float | None


class SoakRequests:
    """Together they are longer than the KV cache holds."""

    def __init__(self, options: argparse.Namespace, info: ModelInfo, draw: random.Random) -> None:
        self._options, self._draw = options, draw
        self._vocab_size = info.vocab_size
        # Together the open ones want half as much again as there is; with adapters, of which many
        # share a prefix and not all can run, more.
        capacity = info.num_blocks * info.block_size
        longest = (8 if options.adapters else 4) * capacity // max(1, info.max_num_seqs)
        self._longest = max(8, min(longest, info.max_model_len - 1))
        num_prefixes = _NUM_PREFIXES_WITH_ADAPTERS if options.adapters else _NUM_PREFIXES
        self._prefixes = [self._ids(self._longest // 3) for _ in range(num_prefixes)]

    def drawn(self, number: int) -> Asked:
        """The next request."""
        draw = self._draw
        is_checked = draw.random() < _CHECKED_SHARE
        length = draw.randint(2, self._longest)
        prompt = self._ids(draw.randint(1, length - 1))
        if draw.random() < (0.6 if self._options.adapters else 0.3):
            prompt = [*draw.choice(self._prefixes), *prompt][: length - 1]
        leaves = not is_checked and draw.random() < _ABORTED_SHARE
        params = self._params(length - len(prompt), is_checked)
        return Asked(
            number,
            prompt,
            params,
            is_checked,
            abort_after=draw.randint(0, params.max_tokens or 0) if leaves else None,
            priority=int(draw.random() < 0.2),
            timeout_s=draw.uniform(0.05, 5) if draw.random() < _DEADLINE_SHARE else None,
        )

    def _params(self, max_tokens: int, is_checked: bool) -> SamplingParams:
        draw = self._draw
        if self._options.adapters:
            max_tokens = min(max_tokens, _MOST_TOKENS_WITH_ADAPTERS)
        if is_checked:
            max_tokens = min(max_tokens, self._options.checked_tokens)
            return greedy(max_tokens)
        kind: dict[str, Any] = draw.choice(
            [
                {},
                {},
                {"temperature": 0.0},
                {"top_p": 0.9, "top_k": 40},
                {"presence_penalty": 0.5, "repetition_penalty": 1.1},
                {"logprobs": 3},
                {"n": 2},
            ]
        )
        return SamplingParams(max_tokens=max_tokens, ignore_eos=True, detokenize=False, **kind)

    def _ids(self, count: int) -> list[int]:
        vocab_size = self._vocab_size
        return [self._draw.randrange(vocab_size // 10, vocab_size) for _ in range(count)]

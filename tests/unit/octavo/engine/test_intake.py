"""What is refused of a prompt, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from octavo.engine.intake import Intake
from octavo.errors import PromptTooLongError
from octavo.sampling_params import SamplingParams
from octavo.server.prompts import check_prompts
from puppet_engine import INFO


class UnreadTokens(list[int]):
    """Looking at millions of them would stop all streams."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("a token was looked at")


def test_a_prompt_that_is_too_long_is_refused_by_its_length() -> None:
    prompt = UnreadTokens([INFO.vocab_size] * (INFO.max_model_len + 1))
    check_prompts([prompt], INFO, "prompt")
    with pytest.raises(PromptTooLongError, match="129 tokens; this model takes at most 128"):
        Intake(INFO, 0).prepare("r", prompt, SamplingParams(max_tokens=1))

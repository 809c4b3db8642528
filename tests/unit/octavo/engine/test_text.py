"""The end of a text: what stops it, and what is only cut off."""

from __future__ import annotations

import pytest

from fake_engine import EOS, ByteTokenizer
from octavo.engine.text import ChoiceText
from octavo.outputs import RequestUpdate
from octavo.sampling_params import SamplingParams

HALF = list("ab\u00e4".encode())[:3]
"""The second byte of the last character is missing."""


def ended(
    stop: str, ids: list[int], reason: str | None
) -> tuple[str, str | None, str | int | None]:
    """Text, finish_reason and stop_reason of a choice that gets its tokens one at a time."""
    choice = ChoiceText(ByteTokenizer(), SamplingParams(stop=[stop]), [])  # type: ignore[arg-type]
    text = ""
    for id in ids:
        event = choice.feed(RequestUpdate("r", [id]))
        text += event.text
        if event.finish_reason is not None:
            return text, event.finish_reason, event.stop_reason
    event = choice.feed(RequestUpdate("r", [], finish_reason=reason))
    return text + event.text, event.finish_reason, event.stop_reason


@pytest.mark.parametrize("reason", ["abort", "length", "deadline"])
@pytest.mark.parametrize("stop", ["\ufffd", "b\ufffd"])
def test_a_character_that_is_cut_off_is_no_stop_string(reason: str, stop: str) -> None:
    assert ended(stop, HALF, reason) == ("ab\ufffd", reason, None)


def test_bytes_that_are_no_character_are_one() -> None:
    """Where the text goes on after them, and where the model ends it there."""
    assert ended("\ufffd", [*HALF, 65], None) == ("ab", "stop", "\ufffd")
    choice = ChoiceText(ByteTokenizer(), SamplingParams(stop=["\ufffd"]), [])  # type: ignore[arg-type]
    event = choice.feed(RequestUpdate("r", [*HALF, EOS], finish_reason="stop"))
    assert (event.text, event.finish_reason, event.stop_reason) == ("ab", "stop", "\ufffd")


def test_what_may_begin_a_stop_string_stands_before_what_is_cut_off() -> None:
    assert ended("bc", HALF, "abort") == ("ab\ufffd", "abort", None)

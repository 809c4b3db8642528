"""Stop strings across any steps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.tokenization.stop_checker import StopChecker, StopMatch

texts = st.text("ab\n", max_size=30)
stops = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4)


def run(checker: StopChecker, deltas: Sequence[str]) -> tuple[str, str | None]:
    """The text shown, and the stop string that ended it."""
    shown = ""
    for delta in deltas:
        result = checker.feed(delta)
        if isinstance(result, StopMatch):
            return shown + result.text, result.stop
        shown += result
    return shown + checker.finish(), None


def expected(text: str, stops: Sequence[str], includes: bool) -> tuple[str, str | None]:
    """By looking at every prefix."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if includes else end - len(stop)], stop
    return text, None


@given(text=texts, stops=stops, cuts=st.lists(st.integers(0, 30)), includes=st.booleans())
def test_stops_at_the_first_end_for_any_split(
    text: str, stops: list[str], cuts: list[int], includes: bool
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    deltas = [text[start:end] for start, end in itertools.pairwise(edges)]
    checker = StopChecker(stops, include_stop_str_in_output=includes)
    assert run(checker, deltas) == expected(text, stops, includes)


@given(text=texts, stops=stops)
def test_nothing_is_held_back_that_cannot_become_a_stop(text: str, stops: list[str]) -> None:
    checker = StopChecker(stops)
    shown = ""
    for position, character in enumerate(text):
        result = checker.feed(character)
        if isinstance(result, StopMatch):
            return
        shown += result
        held = text[len(shown) : position + 1]
        assert any(stop.startswith(held) for stop in stops)
        # And all that can is held: no longer suffix begins a stop string.
        longer = [text[start : position + 1] for start in range(len(shown))]
        assert not any(stop.startswith(suffix) for stop in stops for suffix in longer)


def test_match_across_steps() -> None:
    checker = StopChecker(["</end>"])
    assert checker.feed("done </") == "done "
    assert checker.feed("en") == ""
    assert checker.feed("d> more") == StopMatch("", "</end>")


def test_false_beginning_is_given_out() -> None:
    checker = StopChecker(["</end>"])
    assert checker.feed("a </en") == "a "
    assert checker.feed("try") == "</entry"
    assert checker.finish() == ""


@pytest.mark.parametrize(("includes", "text"), [(False, "a"), (True, "aSTOP")])
def test_stop_is_shown_only_when_asked(includes: bool, text: str) -> None:
    checker = StopChecker(["STOP"], include_stop_str_in_output=includes)
    assert checker.feed("aSTOPb") == StopMatch(text, "STOP")


def test_stop_within_a_longer_one_ends_first() -> None:
    assert StopChecker(["abcd", "bc"]).feed("xabcd") == StopMatch("xa", "bc")
    assert StopChecker(["abc", "bc"]).feed("xabc") == StopMatch("x", "abc")


@given(text=texts, stops=stops, cut=st.integers(0, 30), includes=st.booleans())
def test_text_that_is_passed_over_does_not_end_but_may_begin_a_stop(
    text: str, stops: list[str], cut: int, includes: bool
) -> None:
    checker = StopChecker(stops, include_stop_str_in_output=includes)
    shown = checker.pass_over(text[:cut])
    rest, stop = run(checker, list(text[cut:]))
    ends = [
        (end, found)
        for end in range(min(cut, len(text)) + 1, len(text) + 1)
        for found in sorted(stops, key=len, reverse=True)
        if text[:end].endswith(found)
    ]
    end, expected_stop = ends[0] if ends else (len(text), None)
    kept = end if includes or expected_stop is None else end - len(expected_stop)
    assert (shown + rest, stop) == (text[:kept], expected_stop)

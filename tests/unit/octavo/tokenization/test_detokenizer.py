"""Streamed text is the whole text, whatever the steps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.tokenization.detokenizer import Detokenizer
from octavo.tokenization.tokenizer import Tokenizer
from sample_tokenizers import byte_level_tokenizer, sentencepiece_tokenizer

TOKENIZERS = {"byte-level": byte_level_tokenizer, "sentencepiece": sentencepiece_tokenizer}
both = pytest.mark.parametrize(
    "tokenizer", [make() for make in TOKENIZERS.values()], ids=TOKENIZERS
)


def utf8_heavy(size: int) -> st.SearchStrategy[list[int]]:
    """Ids of whole characters, of parts of them, and of anything else."""
    samples = st.sampled_from(["é", "日本", "🎉", "👩\u200d🚀", "a", " "])
    characters = samples.map(lambda text: list(text.encode()))
    anything = st.lists(st.integers(0, size - 1), min_size=1, max_size=2)
    return st.lists(st.one_of(characters, anything), max_size=12).map(
        lambda parts: [id for part in parts for id in part]
    )


def split(ids: Sequence[int], cuts: Sequence[int]) -> list[Sequence[int]]:
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    return [ids[start:end] for start, end in itertools.pairwise(edges)]


@both
@given(data=st.data())
def test_deltas_add_up_to_the_whole_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(utf8_heavy(tokenizer.vocab_size))
    cuts = data.draw(st.lists(st.integers(0, 99), max_size=8))
    skip = data.draw(st.booleans())
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    text = "".join(detokenizer.feed(part) for part in split(ids, cuts)) + detokenizer.finish()
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)


@both
@given(data=st.data())
def test_text_continues_its_prompt(tokenizer: Tokenizer, data: st.DataObject) -> None:
    prompt = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=6))
    ids = data.draw(utf8_heavy(tokenizer.vocab_size))
    detokenizer = Detokenizer(tokenizer, prompt)
    text = "".join(detokenizer.feed([id]) for id in ids) + detokenizer.finish()
    whole = tokenizer.decode([*prompt, *ids])
    assert whole.endswith(text)
    # What is not in the text is in the prompt's, but for a character begun there.
    before = whole[: len(whole) - len(text)]
    assert tokenizer.decode(prompt).startswith(before)
    assert len(tokenizer.decode(prompt)) - len(before) <= 3


def test_part_of_a_character_is_never_shown() -> None:
    detokenizer = Detokenizer(byte_level_tokenizer())
    *begin, last = "🎉".encode()
    assert [detokenizer.feed([byte]) for byte in begin] == ["", "", ""]
    assert detokenizer.feed([last]) == "🎉"


def test_impossible_bytes_are_shown_as_soon_as_they_are_impossible() -> None:
    detokenizer = Detokenizer(byte_level_tokenizer())
    assert detokenizer.feed([0xF0, 0x9F]) == ""
    assert detokenizer.feed([ord("a")]) == "�a"
    assert detokenizer.feed([0xFF]) == "�"
    assert detokenizer.feed([0xE6]) == ""
    assert detokenizer.finish() == "�"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        pytest.param([], "a b", id="nothing-before"),
        pytest.param([256], "a b", id="only-special-before"),
        pytest.param([256, 259], " a b", id="text-before"),
    ],
)
def test_first_space_belongs_to_a_continuation(prompt: list[int], expected: str) -> None:
    # "▁a", "▁", "b"
    detokenizer = Detokenizer(sentencepiece_tokenizer(), prompt)
    assert "".join(detokenizer.feed([id]) for id in (258, 257, 259)) == expected


def test_character_begun_in_the_prompt_is_completed() -> None:
    first, *rest = "é".encode()
    assert Detokenizer(byte_level_tokenizer(), [ord("x"), first]).feed(rest) == "é"


@pytest.mark.parametrize(("ids", "text"), [([], ""), ([259], ""), ([0x9F], "\ufffd")])
def test_nothing_after_a_character_begun_in_the_prompt_is_no_text(
    ids: list[int], text: str
) -> None:
    """Not the special token that may come there, either."""
    detokenizer = Detokenizer(byte_level_tokenizer(), [*b"a", 0xF0])
    assert detokenizer.feed(ids) + detokenizer.finish() == text


def test_special_tokens_show_only_when_asked() -> None:
    tokenizer = byte_level_tokenizer()
    assert Detokenizer(tokenizer).feed([97, 257, 98]) == "ab"
    assert Detokenizer(tokenizer, skip_special_tokens=False).feed([97, 257]) == "a<|eos|>"


def test_long_text_costs_no_more_per_token_than_a_short_one() -> None:
    # Counted work, not time: the decoder keeps at most three bytes between steps.
    detokenizer = Detokenizer(byte_level_tokenizer(), [97] * 100_000)
    for _ in range(20_000):
        detokenizer.feed([0xE6])
        state = detokenizer._decoder.getstate()
        assert len(state[0]) <= 3
        detokenizer.feed([0x97, 0xA5])

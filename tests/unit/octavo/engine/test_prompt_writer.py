"""Encoding texts for many clients: what a long one costs must not be had many times at once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from octavo.engine.prompt_writer import PromptWriter
from octavo.errors import PromptTooLongError


class HeldTokenizer:
    """Keeps every text of more than one character until it is let go."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        """Of the texts that are being encoded."""
        self.let_go = threading.Event()

    def encode(self, text: str, *_: Any) -> list[int]:
        self.lengths.append(len(text))
        if len(text) > 1:
            self.let_go.wait()
        self.lengths.remove(len(text))
        return [len(text)]


class EchoingTemplate:
    """The last message is the prompt."""

    def render(self, messages: list[dict[str, str]], **_: Any) -> str:
        return messages[-1]["content"]


@pytest.fixture
def tokenizer() -> HeldTokenizer:
    return HeldTokenizer()


@pytest.fixture
def writer(tokenizer: HeldTokenizer) -> PromptWriter:
    writer = PromptWriter()
    writer.tokenizer = tokenizer  # type: ignore[assignment]
    writer._template = EchoingTemplate()  # type: ignore[assignment]
    return writer


@pytest.mark.parametrize(("num_chars", "most"), [(200_000, 4), (2_000_000, 1)])
async def test_so_many_long_texts_are_encoded_at_a_time(
    writer: PromptWriter, tokenizer: HeldTokenizer, num_chars: int, most: int
) -> None:
    """As prompts and as conversations; a short text waits for none of them."""
    text = "a" * num_chars
    messages = [{"role": "user", "content": text}]
    asked = [asyncio.create_task(writer.encode(text)) for _ in range(3)]
    asked += [asyncio.create_task(writer.render(messages, None, False, {})) for _ in range(2)]
    try:
        for _ in range(20):
            assert await writer.encode("a") == [1]
        assert tokenizer.lengths == [num_chars] * most
    finally:
        tokenizer.let_go.set()
    assert await asyncio.gather(*asked) == [[num_chars]] * 5


async def test_long_text_waits_for_no_huge_one(
    writer: PromptWriter, tokenizer: HeldTokenizer
) -> None:
    huge = [asyncio.create_task(writer.encode("a" * 2_000_000)) for _ in range(2)]
    long = asyncio.create_task(writer.encode("a" * 200_000))
    try:
        for _ in range(20):
            await writer.encode("a")
        assert sorted(tokenizer.lengths) == [200_000, 2_000_000]
    finally:
        tokenizer.let_go.set()
    await asyncio.gather(*huge, long)


class CountingTokenizer:
    """A token for every character but spaces, as far as it has to look."""

    def __init__(self) -> None:
        self.num_chars = 0

    def encode(self, text: str, *_: Any) -> list[int]:
        self.num_chars += len(text)
        return [1] * (len(text) - text.count(" "))


@pytest.mark.parametrize("as_messages", [False, True])
async def test_text_far_too_long_is_refused_by_its_beginning(
    writer: PromptWriter, as_messages: bool
) -> None:
    writer.tokenizer = tokenizer = CountingTokenizer()  # type: ignore[assignment]
    text = "a" * 1_000_000
    if as_messages:
        asked = writer.render([{"content": text}], None, False, {}, most_tokens=100)
    else:
        asked = writer.encode(text, most_tokens=100)
    with pytest.raises(PromptTooLongError, match="1000000 characters and more than 100 tokens"):
        await asked
    assert tokenizer.num_chars == 1600


async def test_text_of_few_tokens_is_encoded_however_long(writer: PromptWriter) -> None:
    """And so is one that is only counted."""
    writer.tokenizer = CountingTokenizer()  # type: ignore[assignment]
    assert await writer.encode(" " * 100_000 + "a", most_tokens=100) == [1]
    assert len(await writer.encode("a" * 100_000)) == 100_000

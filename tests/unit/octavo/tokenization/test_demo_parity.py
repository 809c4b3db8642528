"""The demo model's tokenizer and chat template, out of its GGUF, against transformers.

transformers (5.23) builds a tokenizer of the same file, but does not know the split rule
``smollm``: it splits as GPT-2 does, where the model's own ``tokenizer.json`` on the hub splits
digits off first. The two differ in runs of spaces before a digit (and in a space before a numeral
that is no digit) and nowhere else, so the reference here is transformers' tokenizer with the hub's
pre-tokenizer, and for texts without such places transformers' as it is.
"""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from octavo.loading.demo_model import fetch_demo_model
from octavo.tokenization.chat_template import ChatTemplate
from octavo.tokenization.detokenizer import Detokenizer
from octavo.tokenization.tokenizer import Tokenizer
from varied_prompts import PROMPTS

pytestmark = pytest.mark.demo_model

_FRAGMENTS = [
    *("Hello", " world", "the ", "ing", "'s", "'LL", "don't", "é", "ñandú", "Straße", "naïve"),
    *(
        "日本語",
        "中文。",
        "한국어",
        "العربية",
        "עברית",
        "हिन्दी",
        "ไทย",
        "🎉",
        "👩‍🚀",
        "🇫🇷",
        "e\u0301",
    ),
    *(
        " ",
        "  ",
        "   ",
        "        ",
        "\t",
        "\t\t",
        "\n",
        "\n\n",
        "\r\n",
        "\u00a0",
        "\u3000",
        "\u200b",
    ),
    *("0", "42", "3.14", "1,000,000", "2024-11-23", "0x1F", "½", "²", "٣"),
    *("def f(x):\n    return x ** 2\n", "if (a && b) { c += 1; }", "<div class='x'>", "SELECT *"),
    *("\\n", "http://a.b/c?d=e&f=%20", "user@example.com", "#include <stdio.h>", "```python\n"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<|im_sta", "<jupyter_code>"),
    *("!", "...", "—", "“”", "$", "€", "\\", "/", "_", "__init__", "CamelCase", "ALLCAPS"),
]
_SPLIT_DIFFERENTLY = re.compile(r"\s\s\d|\s[²½٣]")


def varied_texts() -> list[str]:
    chooser = random.Random(20241123)
    mixed = ["".join(chooser.choices(_FRAGMENTS, k=chooser.randint(1, 12))) for _ in range(400)]
    unusual = [
        "",
        "\0",
        "a\0b",
        "\ufeff",
        "\uffff",
        "x" * 3000,
        " " * 500,
        "\U0010ffff",
        "\x7f\x80",
    ]
    return [*PROMPTS, *_FRAGMENTS, *unusual, *mixed]


@pytest.fixture(scope="module")
def path() -> Path:
    return fetch_demo_model()


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.open(path)


@pytest.fixture(scope="module")
def as_transformers_has_it(path: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        transformers = pytest.importorskip("transformers")
        return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="module")
def as_the_hub_has_it(path: Path, as_transformers_has_it: Any) -> Any:
    reference = copy.deepcopy(as_transformers_has_it)
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return reference


def test_ids_are_the_hubs(tokenizer: Tokenizer, as_the_hub_has_it: Any) -> None:
    for text in varied_texts():
        expected = as_the_hub_has_it.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, add_special_tokens=False) == expected, repr(text)
        assert tokenizer.encode(text) == expected, "SmolLM2 adds no token by itself"


def test_ids_are_transformers_where_both_split_alike(
    tokenizer: Tokenizer, as_transformers_has_it: Any
) -> None:
    texts = [text for text in varied_texts() if not _SPLIT_DIFFERENTLY.search(text)]
    assert len(texts) > 300
    for text in texts:
        expected = as_transformers_has_it.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text) == expected, repr(text)


def test_text_comes_back(tokenizer: Tokenizer, as_transformers_has_it: Any) -> None:
    for text in varied_texts():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        for skip in (True, False):
            expected = as_transformers_has_it.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            assert tokenizer.decode(ids, skip_special_tokens=skip) == expected


def test_streaming_gives_the_whole_text(tokenizer: Tokenizer) -> None:
    for text in varied_texts():
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
        deltas = [detokenizer.feed([id]) for id in tokenizer.encode(text)]
        assert "".join(deltas) + detokenizer.finish() == text
        assert not any("\ufffd" in delta for delta in deltas)


def test_vocabulary_is_the_same(tokenizer: Tokenizer, as_transformers_has_it: Any) -> None:
    assert tokenizer.vocab_size == len(as_transformers_has_it) == 49152
    assert tokenizer.named_tokens["eos_token"] == as_transformers_has_it.eos_token
    assert tokenizer.named_tokens["bos_token"] == as_transformers_has_it.bos_token
    added = as_transformers_has_it.added_tokens_decoder
    assert tokenizer.special_ids == {id for id, token in added.items() if token.special}


CONVERSATIONS = [
    [{"role": "user", "content": "What is 2 + 2?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|>"}],
    [
        {"role": "user", "content": "日本"},
        {"role": "assistant", "content": " Japan\n"},
        {"role": "user", "content": "  and   12?"},
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["user", "system", "turns"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chat_template_renders_the_same(
    messages: list[dict[str, str]],
    add_generation_prompt: bool,
    path: Path,
    tokenizer: Tokenizer,
    as_transformers_has_it: Any,
) -> None:
    template = ChatTemplate.open(path, tokenizer)
    assert template is not None
    assert template.render(
        messages, add_generation_prompt=add_generation_prompt
    ) == as_transformers_has_it.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )

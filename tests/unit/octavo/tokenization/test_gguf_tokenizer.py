"""Tokenizers built of GGUF metadata, against the libraries the vocabularies come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from octavo.errors import ModelLoadError, OctavoError, UnsupportedModelError
from octavo.tokenization import gguf_tokenizer, gguf_vocabulary
from octavo.tokenization.tokenizer import Tokenizer
from sentencepiece_gguf import train_sentencepiece, vocabulary_fields

TEXTS = [
    "Hello world",
    "  two  spaces   and more    ",
    "the word, there: 12 hours — étaient très 日本語 🎉\n\n\tdef x():\n    return None",
    "",
    " ",
    "\n",
    "▁literal ▁ marks",
    "ﬁ ligature and e\u0301 combining",
]
any_text = st.text(
    st.one_of(st.sampled_from(" the\n\t'12é日🎉▁"), st.characters(exclude_categories=["Cs"])),
    max_size=40,
)


def write(path: Path, fields: Mapping[str, Any], architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sentencepiece_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    fields = vocabulary_fields(train_sentencepiece())
    return Tokenizer.open(write(tmp_path_factory.mktemp("spm") / "m.gguf", fields))


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_gives_the_same_ids(sentencepiece_tokenizer: Tokenizer, text: str) -> None:
    expected = train_sentencepiece().encode(text)
    assert sentencepiece_tokenizer.encode(text, add_special_tokens=False) == expected
    assert sentencepiece_tokenizer.encode(text) == [1, *expected]


@settings(max_examples=200, deadline=None)
@given(text=any_text)
def test_sentencepiece_gives_the_same_ids_and_text_for_any_text(
    sentencepiece_tokenizer: Tokenizer, text: str
) -> None:
    expected = train_sentencepiece().encode(text)
    ids = sentencepiece_tokenizer.encode(text, add_special_tokens=False)
    assert ids == expected
    assert sentencepiece_tokenizer.decode(ids) == train_sentencepiece().decode(ids)


@settings(max_examples=50, deadline=None)
@given(text=any_text)
def test_vocabulary_without_a_space_prefix(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    model = train_sentencepiece(add_dummy_prefix=False)
    path = tmp_path_factory.getbasetemp() / "no-prefix.gguf"
    if not path.exists():
        write(path, vocabulary_fields(model, add_space_prefix=False))
    tokenizer = Tokenizer.open(path)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == model.encode(text)
    assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_gemma_stores_runs_of_spaces_as_such(tmp_path: Path) -> None:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "▁", "  ", "   ", "ab", "\n", "\n\n"]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-1000.0] * len(tokens),
        "tokenizer.ggml.token_type": [3, 3, 3, 2, 1, 1, 1, 4, 4, 1, 1, 4],
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer = Tokenizer.open(write(tmp_path / "gemma.gguf", fields, "gemma3"))
    for text, ids in {
        "ab": [9],
        "a b": [4, 6, 5],
        "a  b": [4, 7, 5],
        "a   b": [4, 8, 5],
        "a\n\nb\n": [4, 11, 5, 10],
    }.items():
        assert tokenizer.encode(text) == [2, *ids]
        assert tokenizer.decode(ids) == text


def train_byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|end|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return backend


def byte_level_fields(backend: Backend, pre: str | None) -> dict[str, Any]:
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=lambda token: model["vocab"][token])
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token.startswith("<|") else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": 1,
    }
    return fields if pre is None else {**fields, "tokenizer.ggml.pre": pre}


@pytest.mark.parametrize("pre", [None, "gpt-2"])
def test_byte_level_gives_the_ids_of_the_backend_it_came_from(
    pre: str | None, tmp_path: Path
) -> None:
    backend = train_byte_level()
    tokenizer = Tokenizer.open(write(tmp_path / "m.gguf", byte_level_fields(backend, pre)))
    for text in [*TEXTS, "a<|end|>b <|im_end|>"]:
        ids = tokenizer.encode(text)
        assert ids == backend.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("smollm", "in  2024", ["in", "ĠĠ", "2", "0", "2", "4"]),
        ("gpt-2", "in  2024", ["in", "Ġ", "Ġ2024"]),
        ("llama-bpe", "in  2024 'LL", ["in", "Ġ", "Ġ", "202", "4", "Ġ'", "LL"]),
        ("qwen2", "in 2024\n\nx", ["in", "Ġ", "2", "0", "2", "4", "ĊĊ", "x"]),
        ("tekken", "camelCase 12", ["camel", "Case", "Ġ", "1", "2"]),
    ],
)
def test_words_are_split_as_the_rule_says(pre: str, text: str, words: list[str]) -> None:
    fields = byte_level_fields(train_byte_level(), pre)
    backend = gguf_tokenizer.build_tokenizer(gguf_vocabulary.parse_vocabulary(fields), "llama")
    assert [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == words


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken"])
def test_patterns_are_those_of_transformers(pre: str) -> None:
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    assert gguf_tokenizer.SPLIT_RULES[pre].pattern == mapping.GGUF_PRE_TOKENIZER_SPLITS[pre]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"pre": "llama-bpe"}, True, id="llama-3"),
        pytest.param({"pre": "qwen2"}, False, id="qwen"),
        pytest.param({}, False, id="unnamed"),
        pytest.param({"pre": "llama-bpe", "add_bos_token": False}, False, id="said-no"),
        pytest.param({"pre": "qwen2", "add_bos_token": True}, True, id="said-yes"),
        pytest.param({"model": "llama"}, True, id="sentencepiece"),
    ],
)
def test_whether_a_bos_token_is_added(fields: dict[str, Any], expected: bool) -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    metadata["tokenizer.ggml.tokens"] = ["a"]
    assert gguf_tokenizer.adds_bos(gguf_vocabulary.parse_vocabulary(metadata)) is expected


def test_llama_3_takes_words_of_its_vocabulary_whole(tmp_path: Path) -> None:
    # No merge leads to "abc", yet it is a token.
    tokens = ["a", "b", "c", "ab", "abc", "<|eos|>"]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 3],
        "tokenizer.ggml.merges": ["a b"],
    }
    assert Tokenizer.open(write(tmp_path / "m.gguf", fields)).encode("abc") == [4]
    fields["tokenizer.ggml.pre"] = "qwen2"
    assert Tokenizer.open(write(tmp_path / "n.gguf", fields)).encode("abc") == [3, 2]


def test_user_defined_tokens_are_found_and_not_special(tmp_path: Path) -> None:
    tokens = ["a", "<think>", "<|im_end|>", "Ġ"]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1, 4, 3, 1],
    }
    tokenizer = Tokenizer.open(write(tmp_path / "m.gguf", fields))
    ids = tokenizer.encode("a<think> a<|im_end|>")
    assert ids == [0, 1, 3, 0, 2]
    assert tokenizer.decode(ids) == "a<think> a"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<think> a<|im_end|>"


BASE = {"tokenizer.ggml.tokens": ["a", "b"]}


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        pytest.param({}, ModelLoadError, "holds no tokenizer", id="none"),
        pytest.param(
            {**BASE, "tokenizer.ggml.model": "bert"},
            UnsupportedModelError,
            "'bert' .* supported: gpt2, llama",
            id="model",
        ),
        pytest.param(
            {**BASE, "tokenizer.ggml.pre": "klingon"},
            UnsupportedModelError,
            "'klingon' .* supported: .*llama-bpe",
            id="pre",
        ),
        pytest.param(
            {**BASE, "tokenizer.ggml.token_type": [1]}, ModelLoadError, "a list of 2", id="types"
        ),
        pytest.param(
            {**BASE, "tokenizer.ggml.merges": ["ab"]}, ModelLoadError, "the merge 'ab'", id="merge"
        ),
        pytest.param(
            {**BASE, "tokenizer.ggml.merges": [""]},
            ModelLoadError,
            "the merge ''",
            id="empty-merge",
        ),
        pytest.param(
            {**BASE, "tokenizer.ggml.merges": ["a z"]},
            ModelLoadError,
            "cannot be built",
            id="merge-of-unknown",
        ),
        pytest.param(
            {**BASE, "tokenizer.ggml.model": "llama"}, ModelLoadError, "no scores", id="no-scores"
        ),
        pytest.param(
            {**BASE, "tokenizer.ggml.add_bos_token": 3}, ModelLoadError, "true or false", id="flag"
        ),
        pytest.param(
            {**BASE, "tokenizer.ggml.bos_token_id": "x"}, ModelLoadError, "a token's id", id="id"
        ),
        pytest.param(
            {"tokenizer.ggml.tokens": ["a", "a"]}, ModelLoadError, "'a' twice", id="twice"
        ),
    ],
)
def test_broken_vocabulary_is_named(
    fields: dict[str, Any], error: type[OctavoError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        Tokenizer.open(write(tmp_path / "m.gguf", fields))


def test_merges_are_in_the_order_of_the_pieces_scores() -> None:
    tokens = ["a", "b", "ab", "ba", "aba", "<s>"]
    scores = [0.0, 0.0, -2.0, -1.0, -3.0, 0.0]
    merges = gguf_tokenizer.merges_by_score(tokens, scores, [1, 1, 1, 1, 1, 3])
    assert merges == [("b", "a"), ("a", "b"), ("ab", "a"), ("a", "ba")]


def test_absurdly_long_pieces_cost_nothing() -> None:
    # Every cut of this one would be two known pieces: a billion characters copied.
    tokens = ["a" * length for length in (1, 2, 100_000)]
    assert gguf_tokenizer.merges_by_score(tokens, [0.0, -1.0, -2.0], [1, 1, 1]) == [("a", "a")]


def test_guessing_the_split_rule_is_said(caplog: pytest.LogCaptureFixture) -> None:
    metadata = {"tokenizer.ggml.tokens": ["a"]}
    gguf_tokenizer.build_tokenizer(gguf_vocabulary.parse_vocabulary(metadata), "llama")
    assert "split as GPT-2 does" in caplog.text


_PIECES = st.sampled_from(
    ["a", "b", "ab", "▁", "▁a", " ", "  ", "", "<0x0A>", "<s>", "Ġ", "é", "\n"]
)
_SCALARS = st.one_of(
    st.booleans(), st.integers(-3, 2**32), st.floats(), st.sampled_from(["gpt2", "llama", "qwen2"])
)
_FIELDS = {
    "model": st.sampled_from(["gpt2", "llama"]),
    "pre": st.sampled_from(["smollm", "qwen2", "tekken"]),
    "tokens": st.lists(_PIECES, max_size=8, unique=True),
    "token_type": st.lists(st.integers(0, 7), max_size=8),
    "scores": st.lists(st.floats(width=32), max_size=8),
    "merges": st.lists(st.tuples(_PIECES, _PIECES).map(" ".join), max_size=4),
    "bos_token_id": st.integers(0, 12),
    "unknown_token_id": st.integers(0, 12),
    "add_bos_token": st.booleans(),
    "add_space_prefix": st.booleans(),
}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_metadata_gives_a_tokenizer_or_our_error(data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(_FIELDS))))
    metadata: dict[str, object] = {
        f"tokenizer.ggml.{name}": data.draw(
            st.one_of(_FIELDS[name], _FIELDS[name], _FIELDS[name], _SCALARS)
        )
        for name in sorted(names | {"tokens"})
    }
    architecture = data.draw(st.sampled_from(["llama", "gemma3"]))
    try:
        vocabulary = gguf_vocabulary.parse_vocabulary(metadata)
        backend = gguf_tokenizer.build_tokenizer(vocabulary, architecture)
    except OctavoError:
        return
    backend.encode("a b\n  é", add_special_tokens=False)

"""Tokenizers out of folders, and the bytes of tokens."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, processors

from octavo.errors import InvalidRequestError, ModelLoadError, OctavoError, UnsupportedModelError
from octavo.tokenization.token_pieces import (
    PieceStyle,
    Spelling,
    byte_level_bytes,
    parse_decoder,
    sentencepiece_bytes,
)
from octavo.tokenization.tokenizer import Tokenizer
from tiny_models import save_byte_tokenizer

BOS, EOS, IM_START, IM_END = range(256, 260)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_byte_tokenizer(tmp_path)
    return tmp_path


def configure(folder: Path, **settings: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def add_framing(folder: Path, single: str) -> None:
    """A post-processor as Llama 3's: ``single`` is like ``<|bos|> $A <|eos|>``."""
    path = str(folder / "tokenizer.json")
    backend = Backend.from_file(path)
    special = [("<|bos|>", BOS), ("<|eos|>", EOS)]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    backend.save(path)


def test_text_goes_there_and_back(folder: Path) -> None:
    tokenizer = Tokenizer.open(folder)
    ids = tokenizer.encode("hé 🎉")
    assert ids == list("hé 🎉".encode())
    assert tokenizer.decode(ids) == "hé 🎉"
    assert tokenizer.vocab_size == 260


def test_special_tokens_in_the_text_become_ids_and_are_skipped(folder: Path) -> None:
    tokenizer = Tokenizer.open(folder)
    ids = tokenizer.encode("a<|im_end|>b")
    assert ids == [97, IM_END, 98]
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<|im_end|>b"
    assert tokenizer.special_ids == {BOS, EOS, IM_START, IM_END}


@pytest.mark.parametrize(
    ("single", "settings", "expected"),
    [
        pytest.param("$A", {}, [97], id="none"),
        pytest.param("<|bos|> $A", {}, [BOS, 97], id="bos"),
        pytest.param("<|bos|> $A <|eos|>", {}, [BOS, 97, EOS], id="both"),
        pytest.param("$A", {"add_bos_token": True}, [BOS, 97], id="bos-wanted"),
        pytest.param("<|bos|> $A", {"add_bos_token": True}, [BOS, 97], id="bos-wanted-and-there"),
        pytest.param("<|bos|> $A", {"add_bos_token": False}, [97], id="bos-unwanted"),
        pytest.param("<|bos|> $A", {"add_eos_token": True}, [BOS, 97, EOS], id="eos-wanted"),
    ],
)
def test_framing(single: str, settings: dict[str, Any], expected: list[int], folder: Path) -> None:
    add_framing(folder, single)
    configure(folder, **settings)
    tokenizer = Tokenizer.open(folder)
    assert tokenizer.encode("a") == expected
    assert tokenizer.encode("a", add_special_tokens=False) == [97]
    assert tokenizer.encode("") == [id for id in expected if id != 97]


def test_named_tokens_come_as_text_or_objects(folder: Path) -> None:
    configure(folder, eos_token={"content": "<|im_end|>", "lstrip": False}, pad_token=None)
    tokenizer = Tokenizer.open(folder)
    assert tokenizer.named_tokens == {"bos_token": "<|bos|>", "eos_token": "<|im_end|>"}
    assert tokenizer.eos_token_ids == [IM_END]


def test_truncation_and_padding_of_the_file_are_not_applied(folder: Path) -> None:
    path = str(folder / "tokenizer.json")
    backend = Backend.from_file(path)
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(path)
    assert len(Tokenizer.open(folder).encode("abcdefghij")) == 10
    assert len(Tokenizer.open(folder).encode("a")) == 1


def test_text_that_is_no_unicode_is_the_requests_fault(folder: Path) -> None:
    text = json.loads('"ab\\ud83c"')
    with pytest.raises(InvalidRequestError, match=r"character 2 is half of .*, '\\ud83c'; send"):
        Tokenizer.open(folder).encode(text)


def change(folder: Path, **parts: Any) -> None:
    """Of tokenizer.json."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def split_by(regex: str) -> dict[str, Any]:
    pattern = {"Regex": regex}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def test_a_text_that_the_vocabularys_rules_give_up_on_is_the_requests_fault(folder: Path) -> None:
    """As ten million spaces are for Llama's and Qwen's; the library panics then."""
    change(folder, pre_tokenizer=split_by(r"(a+)+$"))
    tokenizer = Tokenizer.open(folder)
    with pytest.raises(InvalidRequestError, match=r"of 41 characters .* send a shorter one"):
        tokenizer.encode("a" * 40 + "b")
    assert tokenizer.decode(tokenizer.encode("aaa")) == "aaa"


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"b": 0}}},
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        },
    ],
    ids=lambda parts: next(iter(parts)),
)
def test_rules_that_encode_nothing_are_a_load_error(parts: dict[str, Any], folder: Path) -> None:
    change(folder, **parts)
    with pytest.raises(ModelLoadError, match=r"cannot be read as a tokenizer: .* fetch"):
        Tokenizer.open(folder)


def test_other_threads_run_while_a_long_text_is_encoded(folder: Path) -> None:
    tokenizer = Tokenizer.open(folder)
    ticks, is_over = list[float](), threading.Event()

    def tick() -> None:
        while not is_over.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    ticking = threading.Thread(target=tick)
    ticking.start()
    begin = time.monotonic()
    tokenizer.encode("one word after another " * 50_000)
    end = time.monotonic()
    is_over.set()
    ticking.join()
    quarter = (end - begin) / 4
    assert any(begin + quarter < at < end - quarter for at in ticks)


def test_bytes_of_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.open(folder)
    assert [tokenizer.token_bytes(id) for id in range(256)] == [bytes([id]) for id in range(256)]
    assert tokenizer.token_bytes(IM_START) == b"<|im_start|>"
    # Models pad their tables: ids past the vocabulary stand for nothing.
    assert tokenizer.token_bytes(260) == tokenizer.token_bytes(10**9) == b""
    assert tokenizer.token_bytes(-1) == b""
    assert tokenizer.token_id("<|eos|>") == EOS
    assert tokenizer.token_id("nothing") is None


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 259), max_size=30))
def test_decoding_equals_the_library(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "byte-tokenizer"
    if not folder.exists():
        folder.mkdir()
        save_byte_tokenizer(folder)
    tokenizer = Tokenizer.open(folder)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == backend.decode(
            ids, skip_special_tokens=skip
        )


def sentencepiece_backend(decoder: decoders.Decoder) -> Backend:
    tokens = ["<s>", "▁", "▁a", "b", "▁▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(
        models.BPE({token: id for id, token in enumerate(tokens)}, [], byte_fallback=True)
    )
    backend.decoder = decoder
    backend.add_special_tokens(["<s>"])
    return backend


LLAMA_DECODER = decoders.Sequence(
    [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)
GEMMA_DECODER = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
)


@pytest.mark.parametrize(
    ("decoder", "drops_first_space"),
    [
        pytest.param(LLAMA_DECODER, True, id="llama"),
        pytest.param(GEMMA_DECODER, False, id="gemma"),
        pytest.param(decoders.Metaspace(), True, id="metaspace"),
        pytest.param(
            decoders.Metaspace(prepend_scheme="never"), False, id="metaspace-without-prefix"
        ),
    ],
)
def test_sentencepiece_decoding_equals_the_library(
    decoder: decoders.Decoder, drops_first_space: bool, tmp_path: Path
) -> None:
    backend = sentencepiece_backend(decoder)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.drops_first_space is drops_first_space
    # Of a first token that is several spaces the library's Metaspace drops all; one is right.
    several = [] if isinstance(decoder, decoders.Metaspace) else [[4, 3]]
    for ids in ([2, 3, 1, 2], [1, 2], [0, 2, 3], [3, 4, 2], [], *several):
        assert tokenizer.decode(ids) == backend.decode(ids)
    if isinstance(decoder, decoders.Metaspace):
        return  # it does not join bytes
    party = [5 + byte for byte in "🎉é".encode()]
    assert tokenizer.decode([2, *party, 3]) == backend.decode([2, *party, 3])


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        (decoders.WordPiece(), "WordPiece"),
        (decoders.Sequence([decoders.ByteLevel(), decoders.CTC()]), r"ByteLevel \+ CTC"),
    ],
)
def test_decoder_that_cannot_be_streamed_is_refused(
    decoder: decoders.Decoder, said: str, tmp_path: Path
) -> None:
    sentencepiece_backend(decoder).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedModelError, match=f"decoder is {said}, which cannot be streamed"):
        Tokenizer.open(tmp_path)


def test_styles() -> None:
    assert parse_decoder('{"type": "ByteLevel"}') == PieceStyle(Spelling.BYTE_LEVEL)
    assert byte_level_bytes("Ġé") == b" \xe9"
    assert byte_level_bytes("<｜end▁of▁sentence｜>") == "<｜end▁of▁sentence｜>".encode()
    assert sentencepiece_bytes("<0x0A>") == b"\n"
    assert sentencepiece_bytes("▁▁a") == b"  a"
    assert sentencepiece_bytes("<0x0A>a") == b"<0x0A>a"


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        pytest.param("tokenizer.json", None, ModelLoadError, "--skip-tokenizer-init", id="absent"),
        pytest.param("tokenizer.json", "{}", ModelLoadError, "cannot be read", id="empty"),
        pytest.param("tokenizer.json", "\0", ModelLoadError, "cannot be read", id="garbage"),
        pytest.param("tokenizer_config.json", "[", ModelLoadError, "as JSON", id="config"),
        pytest.param("tokenizer_config.json", "[]", ModelLoadError, "no JSON object", id="list"),
        pytest.param("tokenizer_config.json", "[" * 10**5, ModelLoadError, "as JSON", id="deep"),
        pytest.param(
            "tokenizer_config.json", r'{"bos_token": "\ud800"}', ModelLoadError, "cannot", id="half"
        ),
    ],
)
def test_broken_files_are_named(
    name: str, content: str | None, error: type[OctavoError], said: str, folder: Path
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(error, match=said):
        Tokenizer.open(folder)


def test_the_room_needs_no_torch() -> None:
    modules = ("tokenizer", "gguf_tokenizer", "chat_template", "detokenizer", "stop_checker")
    heavy = ("torch", "numpy", "transformers", "huggingface_hub")
    code = (
        "; ".join(f"import octavo.tokenization.{name}" for name in modules)
        + f"; import sys; sys.exit(', '.join(set({heavy}) & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""The tiny models that other tests stand on are what they say they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tiny_models import EOS_TOKEN_ID, SPECIAL_TOKENS, make_tiny_model, tensor_shapes, tiny_weights


def test_token_ids_of_text_are_its_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(make_tiny_model("llama", tmp_path) / "tokenizer.json"))
    text = "Grüße, 世界 🎵\n\t\x00\x7f ends  here"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(list(range(32, 127))) == bytes(range(32, 127)).decode()


def test_special_tokens_are_single_ids_and_left_out_of_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(make_tiny_model("llama", tmp_path) / "tokenizer.json"))
    assert tokenizer.encode("a<|eos|>b", add_special_tokens=False).ids == [97, EOS_TOKEN_ID, 98]
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [256, 257, 258, 259]
    assert tokenizer.decode([97, EOS_TOKEN_ID, 98]) == "ab"


def test_transformers_reads_tokenizer_and_chat_template(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_tiny_model("qwen2", tmp_path))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|bos|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer("é").input_ids == [0xC3, 0xA9]


def test_shards_hold_the_same_weights_as_one_file(tmp_path: Path) -> None:
    whole = make_tiny_model("gemma3", tmp_path / "whole", dtype=torch.bfloat16)
    cut = make_tiny_model("gemma3", tmp_path / "cut", dtype=torch.bfloat16, num_shards=3)
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    expected = load_file(whole / "model.safetensors")
    assert index["weight_map"].keys() == expected.keys()
    assert len(set(index["weight_map"].values())) == 3
    for name, file_name in index["weight_map"].items():
        assert torch.equal(load_file(cut / file_name)[name], expected[name])
    config = json.loads((cut / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert {name: tuple(tensor.shape) for name, tensor in expected.items()} == tensor_shapes(config)


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    config = json.loads((make_tiny_model("qwen3", tmp_path) / "config.json").read_text())
    first, again, other = tiny_weights(config, 1), tiny_weights(config, 1), tiny_weights(config, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)

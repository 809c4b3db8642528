"""Opening a model, whatever its files are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.errors import ConfigError, ModelLoadError
from octavo.loading.checkpoint import open_checkpoint
from octavo.loading.dummy_source import DummySource
from octavo.loading.gguf_source import GGUFSource
from octavo.loading.safetensors_source import SafetensorsSource
from octavo.tokenization.tokenizer import Tokenizer
from tiny_gguf import write_tiny_gguf
from tiny_models import make_tiny_model, tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_model("llama", tmp_path / "m", dtype=torch.float16)


def write_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(values))


def test_folder(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.hf_config == {**tiny_config("llama"), "torch_dtype": "float16"}
    assert checkpoint.generation_config == {"bos_token_id": 256, "eos_token_id": 257}
    assert checkpoint.dtype is torch.float16
    assert checkpoint.eos_token_ids == [257]
    assert checkpoint.tokenizer_path == str(folder)
    assert isinstance(checkpoint.open_weights(CPU, torch.float32), SafetensorsSource)


def test_gguf_file(folder: Path, tmp_path: Path) -> None:
    path = write_tiny_gguf(folder, tmp_path / "model.gguf", encoding="BF16")
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.hf_config["architectures"] == ["LlamaForCausalLM"]
    assert checkpoint.dtype is torch.bfloat16
    assert checkpoint.eos_token_ids == [257, 259]
    assert isinstance(checkpoint.open_weights(CPU, torch.float32), GGUFSource)
    assert checkpoint.tokenizer_path == str(path)
    text = "naïve <|im_end|> 🎉"
    from_folder = Tokenizer.open(folder)
    from_gguf = Tokenizer.open(path)
    assert from_gguf.encode(text) == from_folder.encode(text)
    assert from_gguf.named_tokens == from_folder.named_tokens


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_dummy_weights(kind: str, folder: Path, tmp_path: Path) -> None:
    path = folder if kind == "folder" else write_tiny_gguf(folder, tmp_path / "model.gguf")
    (folder / "model.safetensors").unlink()
    checkpoint = open_checkpoint(str(path), load_format="dummy")
    assert isinstance(checkpoint.open_weights(CPU, torch.float32), DummySource)


def test_dummy_weights_need_nothing_but_a_configuration(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", **tiny_config("qwen2"))
    checkpoint = open_checkpoint(str(tmp_path), load_format="dummy", needs_tokenizer=False)
    assert checkpoint.tokenizer_path is None
    with pytest.raises(ModelLoadError, match="--skip-tokenizer-init"):
        open_checkpoint(str(tmp_path), load_format="dummy")


def test_overrides_replace_keys(folder: Path) -> None:
    overrides = {"num_hidden_layers": 1, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    config = open_checkpoint(str(folder), hf_overrides=overrides).hf_config
    assert {key: config[key] for key in overrides} == overrides
    assert config["hidden_size"] == 32


def test_overrides_reach_into_the_text_part(folder: Path) -> None:
    write_json(folder / "config.json", text_config={"num_hidden_layers": 4, "vocab_size": 9})
    overrides = {"text_config": {"num_hidden_layers": 1}}
    config = open_checkpoint(str(folder), hf_overrides=overrides).hf_config
    assert config["text_config"] == {"num_hidden_layers": 1, "vocab_size": 9}


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        pytest.param({"eos_token_id": 1}, {"eos_token_id": [2, 3]}, [2, 3], id="generation-first"),
        pytest.param({"eos_token_id": [1, 5]}, {}, [1, 5], id="config"),
        pytest.param({"text_config": {"eos_token_id": 7}}, None, [7], id="text-part"),
        pytest.param({}, None, [], id="none"),
    ],
)
def test_end_tokens(
    config: dict[str, Any], generation: dict[str, Any] | None, expected: list[int], folder: Path
) -> None:
    write_json(folder / "config.json", **config)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        write_json(folder / "generation_config.json", **generation)
    assert open_checkpoint(str(folder)).eos_token_ids == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"torch_dtype": "float32"}, torch.float32),
        ({"dtype": "float16"}, torch.float16),
        ({"text_config": {"torch_dtype": "float16"}}, torch.float16),
        ({}, torch.bfloat16),
    ],
)
def test_dtype(config: dict[str, Any], expected: torch.dtype, folder: Path) -> None:
    write_json(folder / "config.json", **config)
    assert open_checkpoint(str(folder)).dtype is expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"torch_dtype": "int8"}, "'int8', which is not supported; supported: float32"),
        ({"torch_dtype": ["float32"]}, r"\['float32'\], which is not supported"),
        ({"dtype": {}, "torch_dtype": {"a": 1}}, "'a': 1}, which is not supported"),
        ({"eos_token_id": 2**64}, "of 2147483647 at most"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"eos_token_id": [1, -1]}, "must be a token id"),
    ],
)
def test_configuration_that_cannot_be(config: dict[str, Any], said: str, folder: Path) -> None:
    write_json(folder / "config.json", **config)
    (folder / "generation_config.json").unlink()
    with pytest.raises(ModelLoadError, match=said):
        open_checkpoint(str(folder))


def test_load_format_must_fit_the_files(folder: Path, tmp_path: Path) -> None:
    path = write_tiny_gguf(folder, tmp_path / "model.gguf")
    open_checkpoint(str(path), load_format="gguf")
    open_checkpoint(str(folder), load_format="safetensors")
    with pytest.raises(ConfigError, match=r"load_format is 'gguf', but .* is a folder"):
        open_checkpoint(str(folder), load_format="gguf")
    with pytest.raises(ConfigError, match=r"load_format is 'safetensors', but .* is a GGUF file"):
        open_checkpoint(str(path), load_format="safetensors")


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.json"])
def test_tokenizer_that_is_a_link_out_of_the_folder_is_refused(
    name: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(ModelLoadError, match="outside of the model's folder"):
        open_checkpoint(str(folder))

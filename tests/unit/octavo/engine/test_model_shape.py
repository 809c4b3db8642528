"""A model's sizes are known before its weights are fetched, and are those that serving counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fake_bucket import KEY, REGION, FakeBucket, run_fake_bucket
from fake_hub import FakeHub, FakeRepository, run_fake_hub
from octavo.cli import main
from octavo.config import EngineConfig
from octavo.engine.model_shape import can_split, read_model_shape
from octavo.errors import UnsupportedModelError
from octavo.kernels.select import select_kernels
from octavo.loading.checkpoint import open_checkpoint
from octavo.models import registry
from octavo.runner.kv_tensors import KVTensors
from tiny_models import FAMILIES, make_tiny_model

# As published: meta-llama/Llama-3.1-8B, Qwen/Qwen3-0.6B.
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
NUM_LLAMA_8B_PARAMETERS = 8_030_261_248
NUM_LLAMA_8B_NORM_PARAMETERS = 65 * 4096


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return tmp_path


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_sizes_are_those_of_the_loaded_model(family: str, dtype: str, tmp_path: Path) -> None:
    folder = make_tiny_model(family, tmp_path)
    shape = read_model_shape(EngineConfig(model=str(folder), dtype=dtype))
    checkpoint = open_checkpoint(str(folder))
    device, kind = torch.device("cpu"), getattr(torch, dtype)
    loaded = registry.resolve(checkpoint.hf_config).build(
        checkpoint.open_weights(device, kind),
        select_kernels(device, "reference"),
        kind,
        device,
        max_model_len=64,
    )
    assert shape.weights_bytes == loaded.weights_size_bytes
    cache = KVTensors(loaded, 4, 16, kind, device).storage
    assert shape.kv_bytes_per_token * 4 * 16 == cache.numel() * cache.element_size()
    assert shape.stored_bytes == (folder / "model.safetensors").stat().st_size
    assert shape.dtype == dtype


def test_a_published_model_has_its_published_size(llama: Path) -> None:
    shape = read_model_shape(EngineConfig(model=str(llama)))
    # Norms are kept as float32.
    assert shape.weights_bytes == 2 * NUM_LLAMA_8B_PARAMETERS + 2 * NUM_LLAMA_8B_NORM_PARAMETERS
    assert shape.table_bytes == 2 * 128256 * 4096
    assert shape.kv_bytes_per_token == 2 * 2 * 32 * 8 * 128
    assert (shape.context_len, shape.dtype, shape.is_tied) == (131072, "bfloat16", False)
    assert [n for n in range(1, 65) if can_split(shape, n)] == [1, 2, 4, 8, 16, 32]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with run_fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


def test_of_a_model_on_the_hub_only_kilobytes_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    index = {"metadata": {"total_size": 16_060_522_496}, "weight_map": {}}
    repository = hub.repositories["acme/llama"] = FakeRepository(
        {
            "config.json": json.dumps(LLAMA_8B).encode(),
            "tokenizer.json": b"{}",
            "model-00001-of-00001.safetensors": b"x" * 4096,
            "model.safetensors.index.json": json.dumps(index).encode(),
        }
    )
    config = EngineConfig(model="hf://acme/llama", download_dir=str(tmp_path / "cache"))
    shape = read_model_shape(config)
    assert set(hub.downloads) == {"config.json", "model.safetensors.index.json"}
    assert (shape.stored_bytes, shape.revision) == (16_060_522_496, repository.commit)


def test_of_a_model_in_a_bucket_no_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_fake_bucket("models") as bucket:
        _point_at(bucket, monkeypatch)
        bucket.objects = {
            "llama/config.json": json.dumps(LLAMA_8B).encode(),
            "llama/model.safetensors": b"x" * 4096,
        }
        shape = read_model_shape(
            EngineConfig(model="s3://models/llama", download_dir=str(tmp_path / "cache"))
        )
        assert set(bucket.downloads) == {"llama/config.json"}
    assert (shape.num_layers, shape.stored_bytes, shape.revision) == (32, None, None)


def _point_at(bucket: FakeBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY.secret_access_key)


def test_the_answer_fits_the_message_that_a_container_may_leave(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "message"
    assert main(["inspect", str(llama), "--json", "--output", str(target)]) == 0
    assert capsys.readouterr().out == ""
    text = target.read_text()
    assert len(text) < 4096
    assert json.loads(text)["weights_bytes"] == 16_061_054_976
    assert main(["inspect", str(llama), "--output", str(tmp_path / "no" / "where")]) == 2
    assert "--output is" in capsys.readouterr().err


def test_people_get_a_table(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(llama), "--max-model-len", "8K"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "weights       14.96 GiB in memory" in lines
    assert "  of 8192     1.00 GiB: one request of that many tokens" in lines
    assert "splits over   1, 2, 4, 8, 16, 32 GPUs" in lines


def test_what_cannot_be_served_is_refused_in_the_same_words(
    llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**LLAMA_8B, "architectures": ["MambaForCausalLM"]}
    (llama / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="architecture is MambaForCausalLM"):
        read_model_shape(EngineConfig(model=str(llama)))
    assert main(["inspect", str(llama)]) == 2
    assert "MambaForCausalLM, which is not supported" in capsys.readouterr().err

"""Weights out of GGUF files are those of the safetensors they were converted from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.errors import WeightError
from octavo.gguf.container import GGUFContainer
from octavo.kernels.interface import GGMLType, PackedTensor
from octavo.kernels.reference import ReferenceKernels
from octavo.loading.checkpoint import open_checkpoint
from octavo.loading.gguf_source import GGUFSource
from octavo.loading.safetensors_source import SafetensorsSource
from octavo.models import registry
from octavo.quantization import dequantize
from tiny_gguf import write_tiny_gguf
from tiny_models import FAMILIES, make_tiny_model, tensor_shapes, tiny_config

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def make_tiny(family: str, folder: Path, **overrides: Any) -> Path:
    return make_tiny_model(family, folder, **{**SHAPE, **overrides})


def open_source(path: Path, num_heads: int = 4, num_kv_heads: int = 2) -> GGUFSource:
    return GGUFSource(GGUFContainer.open(path), num_heads, num_kv_heads)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_the_one_converted(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / family)
    original = SafetensorsSource(folder)
    source = open_source(write_tiny_gguf(folder, tmp_path / "model.gguf"))
    for name, shape in tensor_shapes(tiny_config(family, **SHAPE)).items():
        assert name in source
        if len(shape) == 1:
            # Gemma's norms are raised by 1 and lowered again: rounded once.
            torch.testing.assert_close(
                source.tensor(name, shape), original.tensor(name, shape), atol=2e-7, rtol=0
            )
        else:
            size = (shape[0], shape[1])
            matrix = source.matrix(name, size)
            assert isinstance(matrix, Tensor)
            assert torch.equal(matrix, torch.as_tensor(original.matrix(name, size)))
    source.check_all_used(lambda name: False)


def test_llama_biases_are_unpermuted_too(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "m", attention_bias=True)
    source = open_source(write_tiny_gguf(folder, tmp_path / "model.gguf"))
    original = SafetensorsSource(folder)
    for module, size in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16), ("o_proj", 32)):
        name = f"model.layers.1.self_attn.{module}.bias"
        assert torch.equal(source.tensor(name, (size,)), original.tensor(name, (size,)))


@pytest.mark.parametrize("encoding", ["Q8_0", "Q4_1"])
def test_packed_rows_are_unpermuted_without_decoding(encoding: str, tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "m", intermediate_size=64)
    source = open_source(write_tiny_gguf(folder, tmp_path / "model.gguf", encoding=encoding))
    original = SafetensorsSource(folder)
    for module, rows in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16)):
        name = f"model.layers.0.self_attn.{module}.weight"
        packed = source.matrix(name, (rows, 32))
        assert isinstance(packed, PackedTensor)
        assert packed.kind is GGMLType[encoding]
        expected = original.matrix(name, (rows, 32))
        assert isinstance(expected, Tensor)
        error = (dequantize(packed) - expected).abs().max()
        # Half a step of four bits over the range of a row; other rows would differ by far more.
        assert error < expected.abs().max() / 12


@pytest.mark.parametrize(("encoding", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_float_matrices_are_views_of_the_file(
    encoding: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = make_tiny("qwen2", tmp_path / "m")
    source = open_source(write_tiny_gguf(folder, tmp_path / "model.gguf", encoding=encoding))
    name = "model.layers.0.mlp.up_proj.weight"
    matrix = source.matrix(name, (48, 32))
    again = source.matrix(name, (48, 32))
    assert isinstance(matrix, Tensor)
    assert isinstance(again, Tensor)
    assert matrix.dtype is dtype
    assert matrix.data_ptr() == again.data_ptr()
    expected = SafetensorsSource(folder).matrix(name, (48, 32))
    assert isinstance(expected, Tensor)
    assert torch.equal(matrix, expected.to(dtype))


def test_views_outlive_their_source(tmp_path: Path) -> None:
    folder = make_tiny("qwen2", tmp_path / "m")
    path = write_tiny_gguf(folder, tmp_path / "model.gguf")
    matrix = open_source(path).matrix("model.embed_tokens.weight", (272, 32))
    path.unlink()
    expected = SafetensorsSource(folder).matrix("model.embed_tokens.weight", (272, 32))
    assert torch.equal(torch.as_tensor(matrix), torch.as_tensor(expected))


def test_tied_head_is_absent(tmp_path: Path) -> None:
    folder = make_tiny("qwen2", tmp_path / "m", tie_word_embeddings=True)
    source = open_source(write_tiny_gguf(folder, tmp_path / "model.gguf"))
    assert "lm_head.weight" not in source
    assert "model.embed_tokens.weight" in source


def test_wrong_shape_and_absent_tensor_are_named(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "m")
    source = open_source(write_tiny_gguf(folder, tmp_path / "model.gguf"))
    with pytest.raises(WeightError, match=r"model.norm.weight in .* is \[32\], .* makes it \[64\]"):
        source.tensor("model.norm.weight", (64,))
    with pytest.raises(WeightError, match=r"model.layers.9.mlp.up_proj.weight is not in"):
        source.matrix("model.layers.9.mlp.up_proj.weight", (48, 32))


def test_tensor_of_an_unknown_feature_shows_as_left_over(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "m")
    extra = {"blk.0.attn_sinks.weight": torch.zeros(4), "rope_freqs.weight": torch.ones(4)}
    path = write_tiny_gguf(folder, tmp_path / "model.gguf", extra_tensors=extra)
    source = open_source(path)
    with pytest.raises(WeightError, match=r"no place for: blk\.0\.attn_sinks\.weight, "):
        source.check_all_used(lambda name: False)


def test_encoding_that_octavo_cannot_read_is_named(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "m", intermediate_size=64)
    source = open_source(write_tiny_gguf(folder, tmp_path / "model.gguf", encoding="MXFP4"))
    with pytest.raises(WeightError, match=r"encoded as MXFP4, .* supported: F32, .*Q6_K"):
        source.matrix("model.embed_tokens.weight", (272, 32))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_uses_every_tensor(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / family)
    checkpoint = open_checkpoint(str(write_tiny_gguf(folder, tmp_path / "model.gguf")))
    resolved = registry.resolve(checkpoint.hf_config)
    cpu = torch.device("cpu")
    weights = checkpoint.open_weights(cpu, torch.float32)
    resolved.build(weights, ReferenceKernels(), torch.float32, cpu, 64)
    weights.check_all_used(resolved.can_ignore)

"""GGUF metadata as a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.errors import ModelLoadError, OctavoError, UnsupportedModelError
from octavo.gguf.container import GGUFContainer
from octavo.loading import gguf_config
from octavo.loading.model_folder import read_json
from octavo.models import registry
from tiny_gguf import write_tiny_gguf
from tiny_models import FAMILIES, make_tiny_model

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
# Gemma's layer pattern and query scale are llama.cpp's own, not in the file.
AS_LLAMA_CPP_HAS_IT: dict[str, dict[str, Any]] = {
    "gemma3": {
        "num_hidden_layers": 6,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 8,
    }
}


def shape_of(family: str) -> dict[str, Any]:
    return {**SHAPE, **AS_LLAMA_CPP_HAS_IT.get(family, {})}


def convert(
    family: str,
    tmp_path: Path,
    metadata: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, torch.Tensor] | None = None,
    **overrides: Any,
) -> dict[str, object]:
    folder = make_tiny_model(family, tmp_path / "m", **{**shape_of(family), **overrides})
    path = write_tiny_gguf(
        folder, tmp_path / "model.gguf", metadata=metadata, extra_tensors=extra_tensors
    )
    return gguf_config.hf_config(GGUFContainer.open(path))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_decoder_as_from_the_folder(family: str, tmp_path: Path) -> None:
    config = convert(family, tmp_path)
    folder = make_tiny_model(family, tmp_path / "m", **shape_of(family))

    assert (
        registry.resolve(config).config == registry.resolve(read_json(folder, "config.json")).config
    )


def test_llama_in_full(tmp_path: Path) -> None:
    assert convert("llama", tmp_path) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 272,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": [257, 259],
        "bos_token_id": 256,
        "rope_theta": 10000.0,
    }


def test_llama_3_scaling_comes_as_factors(tmp_path: Path) -> None:
    factors = torch.tensor([1.0, 1.5, 7.25, 8.0])
    config = convert("llama", tmp_path, extra_tensors={"rope_freqs.weight": factors})
    assert config["rope_scaling"] == {"rope_type": "factors", "factors": [1.0, 1.5, 7.25, 8.0]}
    registry.resolve(config)


def test_yarn_and_linear_scaling(tmp_path: Path) -> None:
    yarn = {
        "qwen2.rope.scaling.type": "yarn",
        "qwen2.rope.scaling.factor": 4.0,
        "qwen2.rope.scaling.original_context_length": 128,
    }
    config = convert("qwen2", tmp_path, yarn)
    assert config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    linear = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    config = convert("gemma3", tmp_path, linear)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_a_27b_gemma_scales_queries_by_its_hidden_size(tmp_path: Path) -> None:
    config = convert("gemma3", tmp_path, {"gemma3.block_count": 62})
    assert config["query_pre_attn_scalar"] == 32 // 4


def test_tied_head(tmp_path: Path) -> None:
    assert convert("qwen2", tmp_path, tie_word_embeddings=True)["tie_word_embeddings"] is True


def test_biases_are_seen_in_the_tensors(tmp_path: Path) -> None:
    config = convert("llama", tmp_path, attention_bias=True, mlp_bias=True)
    assert config["attention_bias"] is True
    assert config["mlp_bias"] is True


def test_head_size_follows_from_the_heads_where_it_is_not_stated(tmp_path: Path) -> None:
    absent = {"llama.attention.key_length": None, "llama.attention.value_length": None}
    assert convert("llama", tmp_path, absent)["head_dim"] == 8


def test_equal_numbers_for_every_layer_are_one(tmp_path: Path) -> None:
    config = convert("llama", tmp_path, {"llama.attention.head_count_kv": [2, 2]})
    assert config["num_key_value_heads"] == 2


@pytest.mark.parametrize(
    ("metadata", "error", "said"),
    [
        pytest.param(
            {"llama.expert_count": 8}, UnsupportedModelError, "expert_count is 8", id="experts"
        ),
        pytest.param(
            {"llama.attention.value_length": 16},
            UnsupportedModelError,
            "keys have 8 elements and values 16",
            id="value-length",
        ),
        pytest.param(
            {"llama.attention.head_count_kv": [2, 1]},
            UnsupportedModelError,
            "differs between layers",
            id="per-layer",
        ),
        pytest.param(
            {"llama.rope.scaling.type": "longrope"},
            UnsupportedModelError,
            "'longrope', .* supported: none, linear, yarn",
            id="scaling",
        ),
        pytest.param({"split.count": 3}, UnsupportedModelError, "one of 3 parts", id="split"),
        pytest.param(
            {"llama.context_length": None}, ModelLoadError, "context_length is None", id="absent"
        ),
        pytest.param(
            {"llama.embedding_length": "wide"},
            ModelLoadError,
            "embedding_length is 'wide'",
            id="text",
        ),
        pytest.param({"llama.rope.freq_base": -1.0}, ModelLoadError, "above 0", id="negative-base"),
        pytest.param(
            {"llama.attention.head_count": 5, "llama.attention.key_length": None},
            ModelLoadError,
            "a divisor of 32",
            id="heads",
        ),
    ],
)
def test_what_cannot_be_served_is_named(
    metadata: dict[str, Any], error: type[OctavoError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        convert("llama", tmp_path, metadata)


def test_unknown_architecture_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'mamba' .* gemma3, llama, qwen2, qwen3"):
        convert("llama", tmp_path, {"general.architecture": "mamba"})


def test_end_tokens_are_the_named_and_the_well_known() -> None:
    metadata = {
        "tokenizer.ggml.tokens": ["<|end_of_text|>", "<|eot_id|>", "a", "<|im_end|>", "x"],
        "tokenizer.ggml.token_type": [3, 3, 1, 1, 3],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 4,
        "tokenizer.ggml.eom_token_id": 4_294_967_295,
    }
    # 3 spells like an end, but is an ordinary token.
    assert gguf_config.eos_token_ids(metadata) == [1, 4, 0]

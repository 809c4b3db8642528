"""Files as the hub has them, in the form of transformers 4 and in that of transformers 5."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from octavo.errors import ConfigError
from octavo.layers.rotary import Llama3Scaling, Rope
from octavo.models import registry
from octavo.models.decoder_config import AttentionHeads
from tiny_models import FAMILIES, tiny_config

SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 49152,
}
LLAMA_32_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
MISTRAL_7B_V01 = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN25_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GEMMA_3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
QWEN3_WITH_YARN = {
    **QWEN3_06B,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    },
}

PUBLISHED = {
    "smollm2-135m": SMOLLM2_135M,
    "llama-3.2-1b": LLAMA_32_1B,
    "mistral-7b-v0.1": MISTRAL_7B_V01,
    "qwen2.5-0.5b": QWEN25_05B,
    "qwen3-0.6b": QWEN3_06B,
    "qwen3-0.6b-yarn": QWEN3_WITH_YARN,
    "gemma-3-1b": GEMMA_3_1B,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_forms_of_a_file_mean_the_same(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    published = PUBLISHED[name]
    rewritten = transformers.AutoConfig.for_model(**published).to_dict()
    assert "rope_scaling" not in rewritten
    assert "rope_parameters" in rewritten
    assert registry.resolve(rewritten).config == registry.resolve(published).config


def test_llama_32_is_read_whole() -> None:
    config = registry.resolve(LLAMA_32_1B).config
    assert config.heads == AttentionHeads(32, 8, 64)
    assert set(config.ropes) == {Rope(500000.0, 64, Llama3Scaling(32.0, 1.0, 4.0, 8192))}
    assert config.context_len == 131072
    assert (config.num_layers, config.vocab_size, config.is_tied) == (16, 128256, True)
    assert config.norm_eps == 1e-5


def test_gemma_3_has_every_sixth_layer_global() -> None:
    config = registry.resolve(GEMMA_3_1B).config
    is_global = [window is None for window in config.windows]
    assert [index for index, full in enumerate(is_global) if full] == [5, 11, 17, 23]
    assert {window for window in config.windows if window} == {512}
    assert [rope.theta for rope in config.ropes[4:6]] == [10000.0, 1000000.0]


def test_qwen3_with_yarn_reaches_four_times_as_far() -> None:
    assert registry.resolve(QWEN3_06B).config.context_len == 40960
    assert registry.resolve(QWEN3_WITH_YARN).config.context_len == 131072


JUNK: list[Any] = [None, -1, 0, 1.5, "x", "", True, [], [1], {}, {"x": 1}, float("inf"), 10**6]
JUNK += [1e308, 10**20, 10**400]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_value_makes_anything_but_a_config_error(family: str) -> None:
    keys = {*tiny_config(family), "rope_scaling", "rope_parameters", "layer_types", "mlp_bias"}
    refused: list[tuple[str, str]] = []
    for key, value in itertools.product(sorted(keys), JUNK):
        try:
            registry.resolve(tiny_config(family, **{key: value}))
        except ConfigError as error:
            refused.append((key, str(error)))
    assert len(refused) > 50
    assert all(key in message for key, message in refused if key != "architectures")

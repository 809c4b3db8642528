"""Configurations are read in every form they come in; what cannot be served is named."""

from __future__ import annotations

import math
from typing import Any

import pytest

from octavo.errors import ConfigError, UnsupportedModelError
from octavo.layers.rotary import FrequencyFactors, LinearScaling, Llama3Scaling, Rope, YarnScaling
from octavo.models import registry
from octavo.models.decoder_config import Activation, AttentionHeads, DecoderConfig
from tiny_models import tiny_config

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def parse(family: str, **overrides: Any) -> DecoderConfig:
    return registry.resolve(tiny_config(family, **overrides)).config


@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        pytest.param("llama", {"hidden_size": None}, "hidden_size is missing", id="missing"),
        pytest.param("llama", {"vocab_size": 0}, "vocab_size is 0", id="zero"),
        pytest.param("llama", {"vocab_size": "9"}, "an integer of at least 1", id="string"),
        pytest.param("llama", {"num_hidden_layers": True}, "is True", id="bool"),
        pytest.param("llama", {"num_hidden_layers": 10**9}, "and at most 10000", id="layers"),
        pytest.param("qwen2", {"num_hidden_layers": 10**9}, "and at most 10000", id="qwen-layers"),
        pytest.param(
            "gemma3", {"num_hidden_layers": 10**9}, "and at most 10000", id="gemma-layers"
        ),
        pytest.param("llama", {"vocab_size": 2**31}, "and at most 2147483647", id="vocabulary"),
        pytest.param("llama", {"head_dim": 2**31 - 1}, "and at most 65536", id="wide-head"),
        pytest.param(
            "llama", {"max_position_embeddings": 2**31}, "and at most 16777216", id="positions"
        ),
        pytest.param(
            "llama",
            {"rope_scaling": {"type": "yarn", "factor": 1e308}},
            "at most 16777216 positions, not YaRN's inf",
            id="yarn",
        ),
        pytest.param("llama", {"rope_theta": 10**400}, "a number above 0", id="digits"),
        pytest.param("llama", {"partial_rotary_factor": 1e308}, "even part", id="huge-rotary"),
        pytest.param("llama", {"intermediate_size": 4.5}, "is 4.5", id="fraction"),
        pytest.param(
            "llama", {"num_key_value_heads": 3}, "divisor of num_attention_heads", id="kv-heads"
        ),
        pytest.param(
            "llama",
            {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None},
            "divisor of hidden_size",
            id="head_dim",
        ),
        pytest.param("llama", {"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05", id="eps"),
        pytest.param("llama", {"rms_norm_eps": math.nan}, "a number above 0", id="nan"),
        pytest.param("llama", {"mlp_bias": 1}, "true or false", id="switch"),
        pytest.param("llama", {"rope_theta": 1.0}, "above 1", id="theta"),
        pytest.param("llama", {"rope_scaling": [4]}, "an object", id="rope-list"),
        pytest.param(
            "llama",
            {"rope_scaling": {"type": "linear"}},
            "rope_scaling.factor is missing",
            id="rope-factor",
        ),
        pytest.param(
            "llama",
            {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}},
            "above low_freq_factor",
            id="llama3-order",
        ),
        pytest.param("llama", {"partial_rotary_factor": 0.45}, "even part", id="odd-rotary"),
        pytest.param("llama", {"partial_rotary_factor": 1.5}, "even part", id="large-rotary"),
        pytest.param(
            "llama",
            {"rope_scaling": {"rope_type": "factors", "factors": [1.0]}},
            "8 numbers",
            id="factors",
        ),
        pytest.param("gemma3", {"sliding_window": None}, "sliding_window is None", id="no-window"),
        pytest.param("qwen2", {"layer_types": ["full_attention"]}, "each of the 2", id="types"),
        pytest.param("qwen2", {"layer_types": "full_attention"}, "list of strings", id="type"),
    ],
)
def test_impossible_value_is_named(family: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(family, **overrides)


@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        pytest.param("llama", {"hidden_act": "relu2"}, "hidden_act is 'relu2'.*silu", id="act"),
        pytest.param(
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling.type is 'dynamic'.*llama3, yarn",
            id="dynamic",
        ),
        pytest.param(
            "qwen2",
            {"rope_parameters": {"rope_type": "longrope"}},
            "rope_parameters.rope_type is 'longrope'",
            id="longrope",
        ),
        pytest.param("gemma3", {"final_logit_softcapping": 30.0}, "30.0", id="final-cap"),
        pytest.param("gemma3", {"attn_logit_softcapping": 50.0}, "50.0", id="attention-cap"),
        pytest.param("gemma3", {"use_bidirectional_attention": True}, "causal", id="both-ways"),
        pytest.param(
            "qwen3", {"layer_types": ["full_attention", "linear_attention"]}, "linear", id="layer"
        ),
        pytest.param(
            "llama", {"quantization_config": {"quant_method": "gptq"}}, "gptq", id="quantised"
        ),
    ],
)
def test_unsupported_feature_is_refused_by_name(
    family: str, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse(family, **overrides)


def test_llama_with_the_fewest_keys() -> None:
    config = registry.resolve(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 100,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        }
    ).config
    rope = Rope(10000.0, 16)
    assert config == DecoderConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        heads=AttentionHeads(4, 4, 16),
        context_len=256,
        windows=(None, None),
        ropes=(rope, rope),
        norm_eps=1e-6,
        attention_scale=0.25,
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        pytest.param({}, Rope(10000.0, 8), id="plain"),
        pytest.param({"rope_theta": 5e5}, Rope(5e5, 8), id="theta"),
        pytest.param({"partial_rotary_factor": 0.5}, Rope(10000.0, 4), id="partial"),
        pytest.param(
            {"rope_scaling": {"type": "linear", "factor": 2}},
            Rope(10000.0, 8, LinearScaling(2.0)),
            id="linear",
        ),
        pytest.param(
            {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
            Rope(5e5, 8, Llama3Scaling(8.0, 1.0, 4.0, 64)),
            id="llama3-parameters",
        ),
        pytest.param(
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": None}},
            Rope(10000.0, 8, Llama3Scaling(8.0, 1.0, 4.0, 512)),
            id="llama3-length-from-model",
        ),
        pytest.param(
            {"rope_scaling": YARN},
            Rope(10000.0, 8, YarnScaling(4.0, 128, 0.1 * math.log(4) + 1)),
            id="yarn",
        ),
        pytest.param(
            {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "truncate": False}},
            Rope(10000.0, 8, YarnScaling(4.0, 128, 1.0, truncate=False)),
            id="yarn-mscale",
        ),
        pytest.param(
            {"rope_scaling": {"rope_type": "factors", "factors": [1, 1, 2, 8]}},
            Rope(10000.0, 8, FrequencyFactors((1.0, 1.0, 2.0, 8.0))),
            id="factors",
        ),
    ],
)
def test_rotary_settings_in_each_form(overrides: dict[str, Any], expected: Rope) -> None:
    assert parse("llama", head_dim=8, **overrides).ropes == (expected, expected)


def test_context_is_what_yarn_stretches_it_to() -> None:
    assert parse("llama").context_len == 512
    assert parse("llama", rope_scaling={**YARN, "factor": 8.0}).context_len == 1024
    assert parse("llama", rope_scaling=LLAMA3).context_len == 512


@pytest.mark.parametrize(
    ("family", "overrides", "windows"),
    [
        pytest.param("llama", {}, (None, None), id="llama"),
        pytest.param("mistral", {"sliding_window": 7}, (7, 7), id="mistral"),
        pytest.param("mistral", {"sliding_window": None}, (None, None), id="mistral-null"),
        pytest.param("qwen2", {}, (None, None), id="qwen-off"),
        pytest.param("qwen2", {"use_sliding_window": True}, (None, 24), id="qwen-upper"),
        pytest.param(
            "qwen2",
            {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True},
            (24, None),
            id="qwen-types",
        ),
        pytest.param("gemma3", {}, (20, 20, None), id="gemma-pattern"),
        pytest.param(
            "gemma3", {"sliding_window_pattern": 2}, (20, None, 20), id="gemma-other-pattern"
        ),
    ],
)
def test_windows_of_each_layer(
    family: str, overrides: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert parse(family, **overrides).windows == windows


def test_mistral_without_the_key_has_the_first_releases_window() -> None:
    config = tiny_config("mistral")
    del config["sliding_window"]
    assert registry.resolve(config).config.windows == (4096, 4096)


def test_gemma_scales_its_global_layers_only() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    local, _, full = parse("gemma3", rope_scaling=scaling).ropes
    assert local == Rope(10000.0, 16)
    assert full == Rope(1000000.0, 16, LinearScaling(8.0))


def test_gemmas_particulars() -> None:
    config = parse("gemma3")
    assert config.activation is Activation.GELU_TANH
    assert config.embedding_scale == math.sqrt(32)
    assert config.attention_scale == 12**-0.5
    assert config.unit_offset_norms
    assert config.post_norms
    assert config.qk_norm
    assert config.is_tied


def test_gemma_with_images_is_read_as_its_language_model() -> None:
    transformers = pytest.importorskip("transformers")
    text_config = {  # all that the 4B model's file says of its text
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    family = registry.resolve(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": text_config,
            "vision_config": {"hidden_size": 1152},
        }
    )
    whole = transformers.Gemma3TextConfig(**text_config).to_dict()
    whole["architectures"] = ["Gemma3ForCausalLM"]
    assert family.config == registry.resolve(whole).config
    assert family.config.context_len == 131072
    assert family.can_ignore("vision_tower.vision_model.post_layernorm.weight")
    assert family.can_ignore("model.multi_modal_projector.mm_soft_emb_norm.weight")
    assert not family.can_ignore("language_model.model.norm.weight")


def test_duplicate_tied_head_and_old_buffers_may_be_left_unread() -> None:
    tied = registry.resolve(tiny_config("llama", tie_word_embeddings=True))
    untied = registry.resolve(tiny_config("llama"))
    assert tied.can_ignore("lm_head.weight")
    assert not untied.can_ignore("lm_head.weight")
    assert untied.can_ignore("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not untied.can_ignore("model.layers.0.self_attn.q_proj.weight")

"""Gemma 3, text: local and global layers, norms on both sides, a scaled embedding.

Of the checkpoints that also see images (4B and up) the language model is served.
"""

from __future__ import annotations

from collections.abc import Mapping

from octavo.models.config_reader import ConfigReader
from octavo.models.decoder_builder import WeightNames
from octavo.models.decoder_config import (
    DecoderConfig,
    FamilyDefaults,
    parse_decoder,
    parse_layer_types,
    parse_num_layers,
    parse_window,
)
from octavo.models.family import DecoderFamily, ModelFamily
from octavo.models.rope_config import FULL, SLIDING

_DEFAULTS = FamilyDefaults(
    head_dim=256,
    activation_key="hidden_activation",
    activation="gelu_pytorch_tanh",
    is_tied=True,
    global_theta=1_000_000.0,
    local_theta=10_000.0,
)
_NAMES = WeightNames(mlp_norm="pre_feedforward_layernorm")
_DEFAULT_PATTERN = 6
"""Every sixth layer is global."""


_TEXT_DEFAULTS: Mapping[str, object] = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
}
"""What files with a ``text_config`` leave out, being Hugging Face's defaults for the 4B model."""
_OTHER_PREFIXES = ("model.language_model.", "language_model.model.")
_IMAGE_PREFIXES = ("vision_tower.", "multi_modal_projector.")


def family(hf_config: Mapping[str, object]) -> ModelFamily:
    """Raises :class:`octavo.errors.ConfigError` for a configuration that cannot be served."""
    if "text_config" not in hf_config:
        return DecoderFamily(_parse(ConfigReader(hf_config)), _NAMES)
    reader = ConfigReader(hf_config).section("text_config", _TEXT_DEFAULTS)
    ignored = tuple(f"{outer}{name}" for outer in ("", "model.") for name in _IMAGE_PREFIXES)
    return DecoderFamily(_parse(reader), _NAMES, _OTHER_PREFIXES, ignored)


def _parse(reader: ConfigReader) -> DecoderConfig:
    has_bias = reader.boolean("attention_bias", False)
    return parse_decoder(
        reader,
        _DEFAULTS,
        layer_types=_layer_types(reader),
        window=parse_window(reader),
        attention_scale=reader.number("query_pre_attn_scalar", 256.0) ** -0.5,
        qkv_bias=has_bias,
        output_bias=has_bias,
        qk_norm=True,
        post_norms=True,
        unit_offset_norms=True,
        embedding_scale=reader.integer("hidden_size") ** 0.5,
    )


def _layer_types(reader: ConfigReader) -> tuple[str, ...]:
    pattern = reader.integer("sliding_window_pattern", _DEFAULT_PATTERN)
    num_layers = parse_num_layers(reader)
    default = tuple(SLIDING if (index + 1) % pattern else FULL for index in range(num_layers))
    return parse_layer_types(reader, default)

"""Llama 2, 3 and 3.x, and the many models that are Llamas by another name (SmolLM2, Yi)."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.models.config_reader import ConfigReader
from octavo.models.decoder_builder import WeightNames
from octavo.models.decoder_config import FamilyDefaults, parse_decoder, uniform_layer_types
from octavo.models.family import DecoderFamily, ModelFamily
from octavo.models.rope_config import FULL


def family(hf_config: Mapping[str, object]) -> ModelFamily:
    """Raises :class:`octavo.errors.ConfigError` for a configuration that cannot be served."""
    reader = ConfigReader(hf_config)
    has_bias = reader.boolean("attention_bias", False)
    config = parse_decoder(
        reader,
        FamilyDefaults(),
        layer_types=uniform_layer_types(reader, FULL),
        window=None,
        qkv_bias=has_bias,
        output_bias=has_bias,
        mlp_bias=reader.boolean("mlp_bias", False),
    )
    return DecoderFamily(config, WeightNames())

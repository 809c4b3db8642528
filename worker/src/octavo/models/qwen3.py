"""Qwen3 (dense): q and k normalised before the rotation, no biases by default."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.models.config_reader import ConfigReader
from octavo.models.decoder_builder import WeightNames
from octavo.models.decoder_config import FamilyDefaults, parse_decoder
from octavo.models.family import DecoderFamily, ModelFamily
from octavo.models.qwen2 import parse_upper_windows


def family(hf_config: Mapping[str, object]) -> ModelFamily:
    """Raises :class:`octavo.errors.ConfigError` for a configuration that cannot be served."""
    reader = ConfigReader(hf_config)
    window, layer_types = parse_upper_windows(reader)
    has_bias = reader.boolean("attention_bias", False)
    config = parse_decoder(
        reader,
        FamilyDefaults(head_dim=128),
        layer_types=layer_types,
        window=window,
        qkv_bias=has_bias,
        output_bias=has_bias,
        qk_norm=True,
    )
    return DecoderFamily(config, WeightNames())

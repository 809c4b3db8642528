"""Mistral 7B and its successors: a Llama whose attention may be over a window."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.models.config_reader import ConfigReader
from octavo.models.decoder_builder import WeightNames
from octavo.models.decoder_config import (
    FamilyDefaults,
    parse_decoder,
    parse_window,
    uniform_layer_types,
)
from octavo.models.family import DecoderFamily, ModelFamily
from octavo.models.rope_config import FULL, SLIDING


def family(hf_config: Mapping[str, object]) -> ModelFamily:
    """Raises :class:`octavo.errors.ConfigError` for a configuration that cannot be served."""
    reader = ConfigReader(hf_config)
    window = parse_window(reader)
    config = parse_decoder(
        reader,
        FamilyDefaults(),
        layer_types=uniform_layer_types(reader, FULL if window is None else SLIDING),
        window=window,
    )
    return DecoderFamily(config, WeightNames())

"""Qwen2 and Qwen2.5: biases on q, k and v, and an optional window on the upper layers."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.models.config_reader import ConfigReader
from octavo.models.decoder_builder import WeightNames
from octavo.models.decoder_config import (
    FamilyDefaults,
    parse_decoder,
    parse_layer_types,
    parse_num_layers,
    parse_window,
)
from octavo.models.family import DecoderFamily, ModelFamily
from octavo.models.rope_config import FULL, SLIDING

_DEFAULT_MAX_WINDOW_LAYERS = 28


def family(hf_config: Mapping[str, object]) -> ModelFamily:
    """Raises :class:`octavo.errors.ConfigError` for a configuration that cannot be served."""
    reader = ConfigReader(hf_config)
    window, layer_types = parse_upper_windows(reader)
    config = parse_decoder(
        reader, FamilyDefaults(), layer_types=layer_types, window=window, qkv_bias=True
    )
    return DecoderFamily(config, WeightNames())


def parse_upper_windows(reader: ConfigReader) -> tuple[int | None, tuple[str, ...]]:
    """Qwen's rule: layers from ``max_window_layers`` on have the window, if it is used at all.

    Returns the window and each layer's type.
    """
    num_layers = parse_num_layers(reader)
    window = parse_window(reader) if reader.boolean("use_sliding_window", False) else None
    first = reader.integer("max_window_layers", _DEFAULT_MAX_WINDOW_LAYERS, minimum=0)
    default = tuple(
        SLIDING if window is not None and index >= first else FULL for index in range(num_layers)
    )
    return window, parse_layer_types(reader, default)

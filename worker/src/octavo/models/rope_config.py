"""Rotary embedding settings of a ``config.json``, in each of the forms they come in.

Knows the forms: ``rope_theta`` with ``rope_scaling`` (transformers 4), ``rope_parameters``
(transformers 5), and either nested by layer type (Gemma 3). The formulas are in
:mod:`octavo.layers.rotary`.

``rope_type`` ``factors``, with a list ``factors``, is Octavo's own: GGUF files store Llama 3's
scaling not as parameters but as one factor a frequency, and their loader writes it so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from octavo.layers.rotary import (
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    Rope,
    Scaling,
    YarnScaling,
)
from octavo.models.config_reader import ConfigReader

FULL = "full_attention"
SLIDING = "sliding_attention"

_MAX_POSITIONS = 1 << 24
"""Angles are computed for each position a request may have."""
_SUPPORTED = "default, linear, llama3, yarn, factors"


def parse_ropes(
    reader: ConfigReader, head_dim: int, default_thetas: Mapping[str, float | None]
) -> dict[str, Rope]:
    """The rotary embedding of each layer type: ``{full_attention: ..., sliding_attention: ...}``.

    ``default_thetas``: the base of each type where the file has none; None: as full attention,
    scaling included. Raises :class:`octavo.errors.UnsupportedModelError` for an unknown
    ``rope_type`` and :class:`octavo.errors.ConfigError` for values that cannot be.
    """
    nested = reader.section("rope_parameters")
    if nested.has(FULL) or nested.has(SLIDING):
        return {
            kind: _parse_rope(reader, nested.section(kind), head_dim, theta or default_thetas[FULL])
            for kind, theta in default_thetas.items()
        }
    key = "rope_scaling" if reader.has("rope_scaling") else "rope_parameters"
    theta = reader.number("rope_theta", default_thetas[FULL])
    full = _parse_rope(reader, reader.section(key), head_dim, theta)
    local_theta = default_thetas[SLIDING]
    if local_theta is None:
        return {FULL: full, SLIDING: full}
    # Gemma 3 scales its full layers only.
    local_theta = reader.number("rope_local_base_freq", local_theta)
    return {FULL: full, SLIDING: Rope(local_theta, full.rotary_dim)}


def context_len(reader: ConfigReader, rope: Rope) -> int:
    """Longest sequence the file's positions are meant for.

    YaRN states the length it was stretched from; the other scalings leave
    ``max_position_embeddings`` as the stretched length.
    """
    longest = _positions(reader, "max_position_embeddings")
    if isinstance(rope.scaling, YarnScaling):
        stretched = rope.scaling.original_context_len * rope.scaling.factor
        if stretched > _MAX_POSITIONS:
            what = f"such that the context is at most {_MAX_POSITIONS} positions"
            raise reader.error("max_position_embeddings", f"{what}, not YaRN's {stretched:g}")
        return max(longest, int(stretched))
    return longest


def _parse_rope(
    reader: ConfigReader, section: ConfigReader, head_dim: int, theta: float | None
) -> Rope:
    theta = section.number("rope_theta", theta)
    if theta <= 1:
        raise (section if section.has("rope_theta") else reader).error("rope_theta", "above 1")
    share = section.number("partial_rotary_factor", reader.number("partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * min(share, 1.0))
    if share > 1 or rotary_dim < 2 or rotary_dim % 2:
        owner = section if section.has("partial_rotary_factor") else reader
        raise owner.error(
            "partial_rotary_factor", f"such that an even part of head_dim {head_dim} is rotated"
        )
    scaling = _parse_scaling(reader, section)
    if isinstance(scaling, FrequencyFactors) and len(scaling.factors) != rotary_dim // 2:
        raise section.error("factors", f"{rotary_dim // 2} numbers, one a frequency")
    return Rope(theta, rotary_dim, scaling)


def _parse_scaling(reader: ConfigReader, section: ConfigReader) -> Scaling | None:
    # transformers called the key "type" before it called it "rope_type".
    key = "rope_type" if section.has("rope_type") else "type"
    match section.string(key, "default"):
        case "default":
            return None
        case "linear":
            return LinearScaling(section.number("factor"))
        case "llama3":
            return _parse_llama3(reader, section)
        case "yarn":
            return _parse_yarn(reader, section)
        case "factors":
            return FrequencyFactors(section.numbers("factors"))
        case _:
            raise section.unsupported(key, _SUPPORTED)


def _parse_llama3(reader: ConfigReader, section: ConfigReader) -> Llama3Scaling:
    scaling = Llama3Scaling(
        factor=section.number("factor"),
        low_freq_factor=section.number("low_freq_factor"),
        high_freq_factor=section.number("high_freq_factor"),
        original_context_len=_original_context_len(reader, section),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise section.error(
            "high_freq_factor", f"above low_freq_factor, which is {scaling.low_freq_factor}"
        )
    return scaling


def _parse_yarn(reader: ConfigReader, section: ConfigReader) -> YarnScaling:
    original_context_len = _original_context_len(reader, section)
    stretch = _positions(reader, "max_position_embeddings") / original_context_len
    factor = section.number("factor", stretch)
    return YarnScaling(
        factor=factor,
        original_context_len=original_context_len,
        attention_factor=section.number("attention_factor", _attention_factor(section, factor)),
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        truncate=section.boolean("truncate", True),
    )


def _attention_factor(section: ConfigReader, factor: float) -> float:
    """What YaRN recommends, or DeepSeek's ratio of two of them where both are given."""

    def recommended(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if section.has("mscale") and section.has("mscale_all_dim"):
        return recommended(section.number("mscale")) / recommended(section.number("mscale_all_dim"))
    return recommended(1.0)


def _original_context_len(reader: ConfigReader, section: ConfigReader) -> int:
    key = "original_max_position_embeddings"
    if reader.has(key):  # Hugging Face gives the outer one priority
        return _positions(reader, key)
    return _positions(section, key, _positions(reader, "max_position_embeddings"))


def _positions(reader: ConfigReader, key: str, default: int | None = None) -> int:
    return reader.integer(key, default, maximum=_MAX_POSITIONS)

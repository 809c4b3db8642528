"""Rotary position tables, with the scalings that checkpoints ask for.

Knows the published formulas; knows nothing of configuration files or of how a device applies
the table (half-split form, see :mod:`octavo.kernels.interface`).

All arithmetic is float32 in the order Hugging Face's implementation has it: a float32 frequency
times a position of 100,000 is off by 1e-2 radians from the exact angle, and a model was trained
with exactly that angle. More precision here would be less agreement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions are divided by ``factor``. Source: Chen et al., arXiv:2306.15595."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's: long wavelengths are divided by ``factor``, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_len: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN: interpolate low frequencies, keep high ones. Source: arXiv:2309.00071."""

    factor: float
    original_context_len: int
    attention_factor: float
    """Multiplies cosines and sines, and by that the attention scores by its square."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Whether the ramp's ends are rounded to whole dimensions."""


@dataclass(frozen=True, slots=True)
class FrequencyFactors:
    """Each frequency is divided by its own factor: the form GGUF files store.

    Raises ValueError in :func:`inverse_frequencies` unless there is one a frequency.
    """

    factors: tuple[float, ...]


Scaling = LinearScaling | Llama3Scaling | YarnScaling | FrequencyFactors


@dataclass(frozen=True, slots=True)
class Rope:
    """One kind of rotary embedding; equal ones share a table."""

    theta: float
    rotary_dim: int
    """How many leading elements of a head are rotated; even."""
    scaling: Scaling | None = None


def cos_sin_table(rope: Rope, num_positions: int, device: torch.device) -> Tensor:
    """``[num_positions, rotary_dim], float32``: cosines in the first half, sines in the second.

    Computed on the host, whose cosines of large angles are those of Hugging Face's CPU path.
    """
    frequencies = inverse_frequencies(rope)
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = positions[:, None] * frequencies[None, :]
    table = torch.cat([angles.cos(), angles.sin()], dim=1)
    if isinstance(rope.scaling, YarnScaling):
        table *= rope.scaling.attention_factor
    return table.to(device)


def inverse_frequencies(rope: Rope) -> Tensor:
    """``[rotary_dim / 2], float32``: radians a position, scaling applied."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    wavelengths = rope.theta**exponents  # over 2π
    frequencies = 1.0 / wavelengths
    match rope.scaling:
        case None:
            return frequencies
        case LinearScaling(factor):
            return frequencies / factor
        case Llama3Scaling():
            return _llama3(frequencies, rope.scaling)
        case YarnScaling():
            return _yarn(wavelengths, rope, rope.scaling)
        case FrequencyFactors(factors):
            if len(factors) != len(frequencies):
                raise ValueError(
                    f"{len(factors)} frequency factors for {len(frequencies)} frequencies"
                )
            return frequencies / torch.tensor(factors, dtype=torch.float32)


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    longest_kept = scaling.original_context_len / scaling.high_freq_factor
    shortest_divided = scaling.original_context_len / scaling.low_freq_factor
    wavelengths = 2 * math.pi / frequencies
    divided = frequencies / scaling.factor
    share = (scaling.original_context_len / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - share) * frequencies / scaling.factor + share * frequencies
    scaled = torch.where(wavelengths < longest_kept, frequencies, between)
    return torch.where(wavelengths > shortest_divided, divided, scaled)


def _yarn(wavelengths: Tensor, rope: Rope, scaling: YarnScaling) -> Tensor:
    low = _dimension_turning(scaling.beta_fast, rope, scaling.original_context_len)
    high = _dimension_turning(scaling.beta_slow, rope, scaling.original_context_len)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp, without a division by zero
    dimensions = torch.arange(rope.rotary_dim // 2, dtype=torch.float32)
    kept = 1 - ((dimensions - low) / (high - low)).clamp(0, 1)
    return (1.0 / (scaling.factor * wavelengths)) * (1 - kept) + (1.0 / wavelengths) * kept


def _dimension_turning(num_turns: float, rope: Rope, context_len: int) -> float:
    """The (fractional) frequency index that turns ``num_turns`` times within the context."""
    return (rope.rotary_dim * math.log(context_len / (num_turns * 2 * math.pi))) / (
        2 * math.log(rope.theta)
    )

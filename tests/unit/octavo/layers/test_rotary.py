"""Position tables are transformers', to the last bits, also far out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.layers.rotary import (
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    Rope,
    YarnScaling,
    cos_sin_table,
    inverse_frequencies,
)
from octavo.models import registry
from tiny_models import tiny_config

NUM_POSITIONS = 131_072
CPU = torch.device("cpu")


def transformers_table(config: dict[str, Any], num_positions: int) -> Tensor:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary = LlamaRotaryEmbedding(transformers.LlamaConfig(**config))
    cos, sin = rotary(torch.zeros(1), torch.arange(num_positions)[None])
    half = cos.shape[-1] // 2
    return torch.cat([cos[0, :, :half], sin[0, :, :half]], dim=-1)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({}, id="plain"),
        pytest.param({"rope_theta": 1e6}, id="theta"),
        pytest.param({"rope_scaling": {"rope_type": "linear", "factor": 3.0}}, id="linear"),
        pytest.param(
            {
                "rope_theta": 500000.0,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            id="llama3",
        ),
        pytest.param(
            {
                "rope_theta": 1e6,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            id="yarn",
        ),
        pytest.param(
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 16.0,
                    "original_max_position_embeddings": 2048,
                    "beta_fast": 24.0,
                    "beta_slow": 2.0,
                    "truncate": False,
                    "attention_factor": 1.25,
                },
            },
            id="yarn-every-key",
        ),
    ],
)
def test_table_agrees_with_transformers(overrides: dict[str, Any]) -> None:
    config = tiny_config("llama", head_dim=32, max_position_embeddings=NUM_POSITIONS, **overrides)
    (rope,) = set(registry.resolve(config).config.ropes)
    table = cos_sin_table(rope, NUM_POSITIONS, CPU)
    assert table.dtype == torch.float32
    expected = transformers_table(config, NUM_POSITIONS)
    torch.testing.assert_close(table, expected, atol=1e-6, rtol=0)


def test_factors_divide_frequencies_one_by_one() -> None:
    plain = inverse_frequencies(Rope(10000.0, 6))
    factored = inverse_frequencies(Rope(10000.0, 6, FrequencyFactors((1.0, 2.0, 8.0))))
    torch.testing.assert_close(plain / factored, torch.tensor([1.0, 2.0, 8.0]))
    with pytest.raises(ValueError, match="2 frequency factors for 3"):
        inverse_frequencies(Rope(10000.0, 6, FrequencyFactors((1.0, 2.0))))


def test_llama3_scaling_is_what_gguf_files_hold_as_factors() -> None:
    scaled = inverse_frequencies(Rope(500000.0, 64, Llama3Scaling(8.0, 1.0, 4.0, 8192)))
    factors = inverse_frequencies(Rope(500000.0, 64)) / scaled
    again = inverse_frequencies(Rope(500000.0, 64, FrequencyFactors(tuple(factors.tolist()))))
    torch.testing.assert_close(again, scaled, rtol=1e-6, atol=0)


def test_partial_rotation_has_a_narrower_table() -> None:
    assert cos_sin_table(Rope(10000.0, 4), 10, CPU).shape == (10, 4)


def test_scaled_and_plain_tables_differ() -> None:
    plain = cos_sin_table(Rope(10000.0, 16), 64, CPU)
    for scaling in (LinearScaling(2.0), YarnScaling(4.0, 16, 1.1)):
        assert not torch.allclose(plain, cos_sin_table(Rope(10000.0, 16, scaling), 64, CPU))

"""Random LoRA adapters on disk: many alike for measurements, or many kinds to look for faults."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.models import registry
from octavo.models.decoder import projections_of

_WEIGHTS_NAME = "adapter_model.safetensors"
_KINDS: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ("q_proj", "v_proj"),
    ("gate_proj", "up_proj", "down_proj"),
    ("k_proj", "o_proj"),
    ("v_proj", "up_proj"),
    ("down_proj",),
)
"""What adapters are trained on: everything, and less."""


def make_random_adapters(
    folder: Path, hf_config: Mapping[str, Any], count: int, rank: int
) -> list[str]:
    """``count`` folders with adapters of this rank on all seven projections.

    The weights are one file, linked: an engine copies and reads each adapter for itself, and a
    digest covers the configuration too, which differs.
    """
    weights = folder / _WEIGHTS_NAME
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(hf_config, rank, _KINDS[0], 0, 0.02), weights, metadata={"format": "pt"})
    folders = []
    for number in range(count):
        own = folder / f"adapter-{number}"
        own.mkdir()
        os.link(weights, own / weights.name)
        _write_config(own, rank, number)
        folders.append(str(own))
    return folders


def make_varied_adapters(
    folder: Path, hf_config: Mapping[str, Any], count: int, max_rank: int
) -> list[str]:
    """``count`` folders with adapters of ranks up to ``max_rank``, each on some projections, whose
    weights are large enough to change what a model says."""
    ranks = [max_rank, *sorted({1, max_rank // 3, max_rank - 1} - {0, max_rank})]
    folders = []
    for number in range(count):
        own = folder / f"varied-{number}"
        own.mkdir(parents=True)
        # Every rank meets every kind, one of six, in turn.
        rank = ranks[(number + number // len(_KINDS)) % len(ranks)]
        tensors = _tensors(hf_config, rank, _KINDS[number % len(_KINDS)], number, rank**-0.5)
        save_file(tensors, own / _WEIGHTS_NAME, metadata={"format": "pt"})
        _write_config(own, rank, number)
        folders.append(str(own))
    return folders


def _tensors(
    hf_config: Mapping[str, Any], rank: int, modules: Collection[str], seed: int, size_of_b: float
) -> dict[str, Tensor]:
    """What they add to a product of normalised numbers is about ``size_of_b * rank**0.5``."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for projection in projections_of(registry.resolve(hf_config).config):
        for name, size in zip(projection.names, projection.out_features, strict=True):
            if name.rpartition(".")[2] not in modules:
                continue
            begin = f"base_model.model.model.layers.{projection.layer}.{name}."
            a = torch.randn(rank, projection.in_features, generator=generator)
            b = torch.randn(size, rank, generator=generator)
            tensors[f"{begin}lora_A.weight"] = (a * projection.in_features**-0.5).bfloat16()
            tensors[f"{begin}lora_B.weight"] = (b * size_of_b).bfloat16()
    return tensors


def _write_config(folder: Path, rank: int, number: int) -> None:
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
    config["base_model_name_or_path"] = f"random-{number}"
    (folder / "adapter_config.json").write_text(json.dumps(config))

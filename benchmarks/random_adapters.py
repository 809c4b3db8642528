"""Random LoRA adapters on disk, for measurements: one file of weights under many names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from octavo.models import registry
from octavo.models.decoder import projections_of


def make_random_adapters(
    folder: Path, hf_config: Mapping[str, Any], count: int, rank: int
) -> list[str]:
    """``count`` folders with adapters of this rank on all seven projections.

    The weights are one file, linked: an engine copies and reads each adapter for itself, and a
    digest covers the configuration too, which differs.
    """
    weights = folder / "adapter_model.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for projection in projections_of(registry.resolve(hf_config).config):
        for name, size in zip(projection.names, projection.out_features, strict=True):
            begin = f"base_model.model.model.layers.{projection.layer}.{name}."
            a = torch.randn(rank, projection.in_features, generator=generator)
            b = torch.randn(size, rank, generator=generator)
            tensors[f"{begin}lora_A.weight"] = (a * projection.in_features**-0.5).bfloat16()
            tensors[f"{begin}lora_B.weight"] = (b * 0.02).bfloat16()
    save_file(tensors, weights, metadata={"format": "pt"})
    folders = []
    for number in range(count):
        own = folder / f"adapter-{number}"
        own.mkdir()
        os.link(weights, own / weights.name)
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
        config["base_model_name_or_path"] = f"random-{number}"
        (own / "adapter_config.json").write_text(json.dumps(config))
        folders.append(str(own))
    return folders

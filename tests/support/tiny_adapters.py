"""Random LoRA adapters for the tiny models (and others), as PEFT saves them, without PEFT.

``make_adapter(folder, config, rank=4)`` writes ``adapter_config.json`` and
``adapter_model.safetensors`` for a model of this ``config.json``, and returns the folder. Weights
depend on ``seed`` alone and are large enough to change what a model says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapter(
    folder: Path,
    config: Mapping[str, Any],
    *,
    rank: int = 4,
    alpha: float = 8,
    targets: Sequence[str] = ALL,
    seed: int = 0,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float32,
    rank_pattern: Mapping[str, int] | None = None,
    prefix: str = "base_model.model.model.",
    **settings: Any,
) -> Path:
    """``settings`` replace entries of ``adapter_config.json``."""
    ranks = dict(rank_pattern or {})
    generator = torch.Generator().manual_seed(1000 + seed)
    tensors: dict[str, Tensor] = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (out_features, in_features) in module_shapes(config).items():
            short = name.rpartition(".")[2]
            if short not in targets:
                continue
            own = ranks.get(short, rank)
            begin = f"{prefix}layers.{layer}.{name}."
            a = torch.randn(own, in_features, generator=generator) / math.sqrt(in_features)
            b = torch.randn(out_features, own, generator=generator) * (strength / math.sqrt(own))
            tensors[f"{begin}lora_A.weight"] = a.to(dtype)
            tensors[f"{begin}lora_B.weight"] = b.to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    document = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
        "rank_pattern": ranks,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": "test/base",
        **settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


def module_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """``(out_features, in_features)`` of a layer's seven projections."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    query, kv = heads * head_dim, config["num_key_value_heads"] * head_dim
    return {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }

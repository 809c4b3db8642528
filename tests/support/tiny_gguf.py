"""GGUF files of tiny models, written as llama.cpp's converter writes them.

``write_tiny_gguf(folder, path)`` converts a folder of :func:`tiny_models.make_tiny_model`, its
byte-level tokenizer and chat template included, with the ``gguf`` package: q and k rows of Llama
models permuted for interleaved rotary embedding, Gemma's norm weights raised by one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA_INNER = {
    **_INNER,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_tiny_gguf(
    folder: Path,
    path: Path,
    *,
    encoding: str = "F32",
    metadata: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Convert a folder. ``encoding``: of matrices. ``metadata`` entries are added or replace
    those without the architecture's prefix; None removes one.
    """
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, architecture)
    fields = {**_shape_fields(config, architecture), **_tokenizer_fields(folder)}
    for key, value in {**fields, **(metadata or {})}.items():
        if value is not None:
            _add_field(writer, key, value)
    for name, tensor in load_file(folder / "model.safetensors").items():
        _add_tensor(
            writer, _gguf_name(name, architecture), _converted(name, tensor, config), encoding
        )
    for name, tensor in (extra_tensors or {}).items():
        _add_tensor(writer, name, tensor, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shape_fields(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    fields = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_theta"],
    }
    if config["model_type"] in ("mistral", "gemma3_text"):
        fields["attention.sliding_window"] = config["sliding_window"]
    return {f"{architecture}.{key}": value for key, value in fields.items()}


def _tokenizer_fields(folder: Path) -> dict[str, Any]:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    vocab = dict(tokenizer["model"]["vocab"])
    special = [entry["content"] for entry in tokenizer["added_tokens"]]
    vocab.update({entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]})
    tokens = sorted(vocab, key=lambda token: vocab[token])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.bos_token_id": vocab[settings["bos_token"]],
        "tokenizer.ggml.eos_token_id": vocab[settings["eos_token"]],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": settings["chat_template"],
    }


def _add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _gguf_name(name: str, architecture: str) -> str:
    module, kind = name.rsplit(".", 1)
    if module in _OUTER:
        return f"{_OUTER[module]}.{kind}"
    _, _, index, inner = module.split(".", 3)
    names = _GEMMA_INNER if architecture == "gemma3" else _INNER
    return f"blk.{index}.{names[inner]}.{kind}"


def _converted(name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    if config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
        return tensor + 1
    if ARCHITECTURES[config["model_type"]] == "llama":
        if ".q_proj." in name:
            return _interleaved(tensor, config["num_attention_heads"])
        if ".k_proj." in name:
            return _interleaved(tensor, config["num_key_value_heads"])
    return tensor


def _interleaved(tensor: Tensor, num_heads: int) -> Tensor:
    """Half-split rows → pairs side by side, head by head, element by element."""
    head_dim = tensor.shape[0] // num_heads
    order = [
        head * head_dim + half * (head_dim // 2) + pair
        for head in range(num_heads)
        for pair in range(head_dim // 2)
        for half in range(2)
    ]
    return tensor[torch.tensor(order)]


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Tensor, encoding: str) -> None:
    values = tensor.float().numpy()
    if tensor.dim() == 1 or encoding == "F32":
        writer.add_tensor(name, np.ascontiguousarray(values))
        return
    kind = gguf.GGMLQuantizationType[encoding]
    packed = gguf.quants.quantize(np.ascontiguousarray(values), kind)
    writer.add_tensor(name, packed, raw_dtype=kind)

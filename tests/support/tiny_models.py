"""Tiny random models of every family, saved as Hugging Face folders.

``make_tiny_model("llama", folder)`` writes ``config.json``, ``model.safetensors``,
``generation_config.json`` and a byte-level tokenizer (``tokenizer.json`` with a chat template in
``tokenizer_config.json``), and returns the folder. It needs neither transformers nor a network
and takes milliseconds. Keyword arguments replace entries of the configuration::

    make_tiny_model("qwen2", tmp_path, num_hidden_layers=3, tie_word_embeddings=True)

Token ids 0 to 255 are the bytes of UTF-8 text; 256 to 259 are special (see ``SPECIAL_TOKENS``).
Weights depend on ``weight_seed`` alone and are large enough that logits differ clearly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")
BOS_TOKEN_ID = 256
EOS_TOKEN_ID = 257
VOCAB_SIZE = 272
"""Twelve ids past the tokenizer's: real models pad their tables too."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": BOS_TOKEN_ID,
    "eos_token_id": EOS_TOKEN_ID,
    "torch_dtype": "float32",
}
_PARTICULARS: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rope_theta": 10000.0,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "sliding_window": 24,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 24,
        "max_window_layers": 1,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "rope_theta": 1000000.0,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 2,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "num_hidden_layers": 3,
        "query_pre_attn_scalar": 12,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 20,
        "sliding_window_pattern": 3,
        "tie_word_embeddings": True,
    },
}


def make_tiny_model(
    family: str,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    weight_seed: int = 0,
    num_shards: int = 1,
    **overrides: Any,
) -> Path:
    """Write a model of one of :data:`FAMILIES` and its tokenizer; returns ``folder``.

    ``num_shards > 1`` splits the weights over several files with an index.
    """
    overrides.setdefault("torch_dtype", str(dtype).removeprefix("torch."))
    config = tiny_config(family, **overrides)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    _write_json(folder / "generation_config.json", generation)
    tensors = {name: tensor.to(dtype) for name, tensor in tiny_weights(config, weight_seed).items()}
    _save_shards(folder, tensors, num_shards)
    save_byte_tokenizer(folder)
    return folder


def tiny_config(family: str, **overrides: Any) -> dict[str, Any]:
    """The ``config.json`` of a tiny model, as a checkpoint on the hub would have it."""
    return {**_SHAPE, **_PARTICULARS[family], **overrides}


def tiny_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random float32 weights for a :func:`tiny_config`, under Hugging Face's names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _random_weight(name, shape, config, generator)
        for name, shape in tensor_shapes(config).items()
    }


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a checkpoint with this configuration."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(config["num_hidden_layers"]):
        for name, shape in _layer_shapes(config).items():
            shapes[f"model.layers.{index}.{name}"] = shape
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def save_byte_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose ids are bytes, special tokens after them."""
    byte_tokens = _byte_tokens()
    tokenizer = Tokenizer(BPE({token: id for id, token in enumerate(byte_tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _layer_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config["head_dim"]
    query_size = config["num_attention_heads"] * head_dim
    kv_size = config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (query_size, hidden),
        "self_attn.k_proj.weight": (kv_size, hidden),
        "self_attn.v_proj.weight": (kv_size, hidden),
        "self_attn.o_proj.weight": (hidden, query_size),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    family = config["model_type"]
    biased = []
    if family == "qwen2" or config.get("attention_bias"):
        biased += ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    if config.get("attention_bias"):
        biased += ["self_attn.o_proj"]
    if config.get("mlp_bias"):
        biased += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    for name in biased:
        shapes[f"{name}.bias"] = shapes[f"{name}.weight"][:1]
    if family in ("qwen3", "gemma3_text"):
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (head_dim,)
    if family == "gemma3_text":
        shapes["pre_feedforward_layernorm.weight"] = (hidden,)
        shapes["post_feedforward_layernorm.weight"] = (hidden,)
    return shapes


def _random_weight(
    name: str, shape: tuple[int, ...], config: Mapping[str, Any], generator: torch.Generator
) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if "norm" in name:
        # Gemma stores the difference from 1.
        return 0.2 * noise + (0.0 if config["model_type"] == "gemma3_text" else 1.0)
    if name.endswith("bias"):
        return 0.5 * noise
    return noise * (1.5 / math.sqrt(shape[-1]))


def _byte_tokens() -> list[str]:
    """The character GPT-2's byte-level scheme writes for each byte, in the order of bytes.

    Printable Latin-1 characters stand for themselves; the others, in order, for code points
    from 256 up.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _save_shards(folder: Path, tensors: dict[str, Tensor], num_shards: int) -> None:
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file_name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        names = sorted(tensors)[shard::num_shards]
        part = {name: tensors[name] for name in names}
        save_file(part, folder / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file_name))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")

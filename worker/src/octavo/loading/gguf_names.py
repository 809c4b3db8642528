"""GGUF tensor names in Hugging Face's words.

Source: llama.cpp's ``gguf-py/gguf/tensor_mapping.py`` and ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

import re

ROPE_FACTORS = "rope_freqs.weight"
"""Not a weight: part of the configuration (see :mod:`octavo.loading.gguf_config`)."""
_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3_INNER = {
    **_INNER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_ELSEWHERE = re.compile(r"(\w+)\.(weight|bias)")


def hf_name(gguf_name: str, architecture: str) -> str | None:
    """The name on the hub; None for a tensor that Hugging Face's checkpoints do not have."""
    match = _BLOCK.fullmatch(gguf_name)
    if match:
        inner = _GEMMA3_INNER if architecture == "gemma3" else _INNER
        name = inner.get(match[2])
        return None if name is None else f"model.layers.{match[1]}.{name}.{match[3]}"
    match = _ELSEWHERE.fullmatch(gguf_name)
    if match and match[1] in _OUTER:
        return f"{_OUTER[match[1]]}.{match[2]}"
    return None

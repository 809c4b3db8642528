"""Model shapes of published models, served with random weights where only speed matters."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from octavo.grammar import Vocabulary

_LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
_QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
_SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TINY = {
    **_SMOLLM2_135M,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 1024,
}
"""To see that a benchmark runs; its figures mean nothing."""
SHAPES: dict[str, dict[str, object]] = {
    "8b": _LLAMA_8B,
    "0.6b": _QWEN3_06B,
    "135m": _SMOLLM2_135M,
    "tiny": _TINY,
}


def model_folder(shape: str) -> str:
    """A folder with this shape's config.json and nothing else, for ``load_format="dummy"``."""
    folder = Path(tempfile.gettempdir()) / f"octavo-shape-{shape}"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[shape], indent=1))
    return str(folder)


def synthetic_vocabulary(size: int) -> Vocabulary:
    """Tokens like a byte-level vocabulary's: every byte, JSON's marks, and made-up words, of which
    half begin with a space. No special tokens but those that end a text, which no text contains."""
    draw = random.Random(0)
    tokens = dict.fromkeys([bytes([value]) for value in range(256)])
    tokens |= dict.fromkeys(
        [b'{"', b'":', b'", "', b'"}', b'}, {"', b"[{", b'": "', b"\n\n", b"  "]
    )
    while len(tokens) < size:
        letters = bytes(draw.choices(range(97, 123), k=draw.randint(2, 9)))
        tokens.setdefault(b" " * draw.randint(0, 1) + letters)
    ordered = list(tokens)[:size]
    ends = sorted({int(str(shape["eos_token_id"])) for shape in SHAPES.values()})
    special = [token_id for token_id in ends if token_id < size]
    return Vocabulary(ordered, special)

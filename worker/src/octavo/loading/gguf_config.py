"""From GGUF metadata to the ``config.json`` that the same model has on the hub.

So that the model registry has one input. Knows llama.cpp's metadata keys and conventions; what
a GGUF leaves unsaid because llama.cpp has it in its code is written down here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.gguf.container import GGUFContainer
from octavo.loading.gguf_names import ROPE_FACTORS

ARCHITECTURES = {
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
"""``general.architecture`` → Hugging Face's architecture and ``model_type``."""
_GEMMA3_PATTERN = 6
_GEMMA3_LOCAL_THETA = 10_000.0
_GEMMA3_27B_LAYERS = 62
_END_OF_TURN = frozenset(
    {
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<end_of_turn>",
    }
)
"""Control tokens that end a turn in every model that has them; as llama.cpp treats them."""
_CONTROL = 3


def hf_config(container: GGUFContainer) -> dict[str, object]:
    """The equivalent of the model's ``config.json``.

    Raises UnsupportedModelError for an architecture or a feature that is not known, and
    ModelLoadError for metadata that is missing or of the wrong type.
    """
    return _ConfigBuilder(container).build()


def eos_token_ids(metadata: Mapping[str, object]) -> list[int]:
    """Ids that end generation: those named in the metadata, and well-known end-of-turn tokens."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    vocabulary = tokens if isinstance(tokens, list) else []
    ids: list[int] = []
    for name in ("eos_token_id", "eot_token_id", "eom_token_id"):
        value = metadata.get(f"tokenizer.ggml.{name}")
        if type(value) is int and 0 <= value < (len(vocabulary) or value + 1):
            ids.append(value)
    if isinstance(types, list) and len(types) == len(vocabulary):
        ids += [
            token_id
            for token_id, kind in enumerate(types)
            if kind == _CONTROL and vocabulary[token_id] in _END_OF_TURN
        ]
    return list(dict.fromkeys(ids))


class _ConfigBuilder:
    """Reads one file's metadata; keys are those behind the architecture's prefix."""

    def __init__(self, container: GGUFContainer) -> None:
        self._container = container
        self._metadata = container.metadata
        architecture = self._metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"general.architecture is {architecture!r} in {container.path}, which is not "
                f"supported in GGUF form; supported: {', '.join(sorted(ARCHITECTURES))}."
            )
        self._architecture = architecture

    def build(self) -> dict[str, object]:
        self._refuse_unsupported()
        name, model_type = ARCHITECTURES[self._architecture]
        num_heads = self._per_layer_integer("attention.head_count")
        hidden_size = self._integer("embedding_length")
        config: dict[str, object] = {
            "architectures": [name],
            "model_type": model_type,
            "vocab_size": self._vocab_size(),
            "hidden_size": hidden_size,
            "intermediate_size": self._per_layer_integer("feed_forward_length"),
            "num_hidden_layers": self._integer("block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": self._per_layer_integer("attention.head_count_kv", num_heads),
            "head_dim": self._head_dim(hidden_size, num_heads),
            "max_position_embeddings": self._integer("context_length"),
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon", 1e-6),
            "attention_bias": self._has("blk.0.attn_q.bias"),
            "tie_word_embeddings": not self._has("output.weight"),
            "torch_dtype": self._dtype(),
            "eos_token_id": eos_token_ids(self._metadata),
        }
        bos = self._metadata.get("tokenizer.ggml.bos_token_id")
        if bos is not None:
            config["bos_token_id"] = bos
        config.update(self._rope(config["head_dim"]))
        config.update(self._family(config))
        return config

    def _family(self, config: Mapping[str, object]) -> dict[str, object]:
        if self._architecture == "llama":
            own: dict[str, object] = {"mlp_bias": self._has("blk.0.ffn_gate.bias")}
            window = self._optional_integer("attention.sliding_window")
            if window:  # Mistral files are llama files with a window
                own |= {
                    "architectures": ["MistralForCausalLM"],
                    "model_type": "mistral",
                    "sliding_window": window,
                }
            return own
        if self._architecture == "gemma3":
            return self._gemma3(config)
        return {"use_sliding_window": False}

    def _gemma3(self, config: Mapping[str, object]) -> dict[str, object]:
        """llama.cpp knows the layer pattern, the local base and the query scale by heart."""
        layers, heads = self._integer("block_count"), config["num_attention_heads"]
        assert isinstance(heads, int)
        is_27b = layers == _GEMMA3_27B_LAYERS
        scalar = self._integer("embedding_length") // heads if is_27b else config["head_dim"]
        return {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": scalar,
            "sliding_window": self._integer("attention.sliding_window"),
            "sliding_window_pattern": _GEMMA3_PATTERN,
            "rope_local_base_freq": self._number("rope.freq_base_swa", _GEMMA3_LOCAL_THETA),
        }

    def _rope(self, head_dim: object) -> dict[str, object]:
        assert isinstance(head_dim, int)
        default_theta = 1_000_000.0 if self._architecture == "gemma3" else 10_000.0
        config: dict[str, object] = {"rope_theta": self._number("rope.freq_base", default_theta)}
        rotary_dim = self._optional_integer("rope.dimension_count")
        if rotary_dim is not None and rotary_dim != head_dim:
            config["partial_rotary_factor"] = rotary_dim / head_dim
        scaling = self._rope_scaling()
        if scaling is not None:
            config["rope_scaling"] = scaling
        return config

    def _rope_scaling(self) -> dict[str, object] | None:
        if self._has(ROPE_FACTORS):
            # Llama 3's scaling, computed by the converter: one divisor a frequency. The type is
            # octavo's own, see octavo.models.rope_config.
            return {"rope_type": "factors", "factors": self._float32_values(ROPE_FACTORS)}
        kind = self._metadata.get(self._key("rope.scaling.type"), "none")
        match kind:
            case "none":
                return None
            case "linear":
                return {"rope_type": "linear", "factor": self._number("rope.scaling.factor")}
            case "yarn":
                original = self._optional_integer("rope.scaling.original_context_length")
                scaling: dict[str, object] = {
                    "rope_type": "yarn",
                    "factor": self._number("rope.scaling.factor"),
                }
                if original is not None:
                    scaling["original_max_position_embeddings"] = original
                return scaling
            case _:
                raise self._unsupported(
                    f"{self._key('rope.scaling.type')} is {kind!r}", "none, linear, yarn"
                )

    def _refuse_unsupported(self) -> None:
        experts = self._optional_integer("expert_count")
        if experts:
            raise self._unsupported(
                f"{self._key('expert_count')} is {experts}", "models without experts"
            )
        key_length = self._optional_integer("attention.key_length")
        value_length = self._optional_integer("attention.value_length")
        if key_length is not None and value_length is not None and key_length != value_length:
            raise self._unsupported(
                f"keys have {key_length} elements and values {value_length}", "equal sizes"
            )
        parts = self._metadata.get("split.count", 1)
        if parts not in (0, 1):
            raise self._unsupported(
                f"the file is one of {parts} parts",
                "single files; join them with llama.cpp's `llama-gguf-split --merge`",
            )
        if self._has("rope_factors_long.weight"):
            raise self._unsupported("it has rope_factors_long (LongRoPE)", "linear, yarn, llama3")

    def _head_dim(self, hidden_size: int, num_heads: int) -> int:
        stated = self._optional_integer("attention.key_length")
        if stated is not None:
            return stated
        if hidden_size % num_heads:
            raise self._error(
                "attention.head_count", num_heads, f"a divisor of {hidden_size}, the hidden size"
            )
        return hidden_size // num_heads

    def _vocab_size(self) -> int:
        table = self._container.tensors.get("token_embd.weight")
        if table is None:
            raise ModelLoadError(
                f"{self._container.path} holds no token_embd.weight: it is not a language model, "
                "or only a part of one; download the whole model."
            )
        return table.shape[0]

    def _dtype(self) -> str:
        """What dense weights should be served as. Gemma's activations overflow float16."""
        encodings = {
            tensor.encoding.name
            for tensor in self._container.tensors.values()
            if len(tensor.shape) == 2
        }
        if encodings == {"F32"}:
            return "float32"
        return "float16" if encodings <= {"F16", "F32"} and not self._is_gemma() else "bfloat16"

    def _is_gemma(self) -> bool:
        return self._architecture.startswith("gemma")

    def _float32_values(self, name: str) -> list[float]:
        info = self._container.tensors[name]
        if info.encoding.name != "F32" or len(info.shape) != 1:
            raise ModelLoadError(
                f"{name} in {self._container.path} is {info.encoding.name} of shape {info.shape}; "
                "it must be a list of F32."
            )
        data = memoryview(self._container.data)[info.offset : info.offset + info.size_bytes]
        return [float(value) for value in data.cast("f")]

    def _has(self, tensor_name: str) -> bool:
        return tensor_name in self._container.tensors

    def _key(self, name: str) -> str:
        return f"{self._architecture}.{name}"

    def _integer(self, name: str) -> int:
        value = self._optional_integer(name)
        if not value:
            raise self._error(name, value, "an integer of at least 1")
        return value

    def _optional_integer(self, name: str) -> int | None:
        value = self._metadata.get(self._key(name))
        if value is not None and (type(value) is not int or value < 0):
            raise self._error(name, value, "an integer of at least 0")
        return value if isinstance(value, int) else None

    def _per_layer_integer(self, name: str, default: int | None = None) -> int:
        """Some files state one number a layer; they can be served if all are the same."""
        value = self._metadata.get(self._key(name), default)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, list):
            raise self._unsupported(f"{self._key(name)} differs between layers", "one for all")
        if type(value) is not int or value < 1:
            raise self._error(name, value, "an integer of at least 1")
        return value

    def _number(self, name: str, default: float | None = None) -> float:
        value = self._metadata.get(self._key(name), default)
        if type(value) not in (int, float) or not isinstance(value, int | float):
            raise self._error(name, value, "a number")
        if not math.isfinite(value) or value <= 0:
            raise self._error(name, value, "above 0")
        # The file has it as float32: 1e-5 would read 9.99999974e-06, while the shortest decimal
        # of that float32 is the number its author wrote.
        return _shortest_float32(float(value))

    def _error(self, name: str, value: object, expected: str) -> ModelLoadError:
        return ModelLoadError(
            f"{self._key(name)} is {value!r:.80} in {self._container.path}; it must be {expected}."
        )

    def _unsupported(self, what: str, supported: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"In {self._container.path}, {what}, which is not supported; supported: {supported}."
        )


def _shortest_float32(value: float) -> float:
    """The decimal of at most 7 digits nearest to a float32."""
    return float(f"{value:.7g}")

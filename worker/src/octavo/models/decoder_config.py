"""The shape of a decoder, as the shared decoder needs it.

Knows Hugging Face's ``config.json`` keys that all families share; what is particular to one
family is in that family's file. Everything is checked here, so that a decoder can be built
without looking again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from octavo.layers.rotary import Rope
from octavo.models.config_reader import ConfigReader
from octavo.models.rope_config import FULL, SLIDING, context_len, parse_ropes


class Activation(enum.Enum):
    """The gate's non-linearity."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}


_MAX_LAYERS = 10_000
"""Far more than there are: a layer is an object here before its weights are looked for."""
_MAX_HEAD_DIM = 1 << 16


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """The attention heads one rank computes: the only place that says how many.

    Tensor parallelism, when it comes, gives each rank its own; sizes follow from here.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Everything the shared decoder must know of an architecture."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    heads: AttentionHeads
    context_len: int
    """Longest sequence whose positions the model was made for, scaling included."""
    windows: tuple[int | None, ...]
    """Per layer: how many positions a query sees, itself included; None: all before it."""
    ropes: tuple[Rope, ...]
    """Per layer; layers with equal ones share a table."""
    norm_eps: float
    attention_scale: float
    """Multiplies q·k."""
    activation: Activation = Activation.SILU
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """Whether q and k of each head are normalised before the rotation."""
    post_norms: bool = False
    """Whether the results of attention and MLP are normalised before they are added."""
    unit_offset_norms: bool = False
    """Whether norm weights are stored as their difference from 1."""
    embedding_scale: float = 1.0
    is_tied: bool = False
    """Whether the output head is the embedding table."""

    def abridged(self) -> DecoderConfig:
        """The first layers alone, as many as have one of every kind, and a last one after them."""
        kinds = list(zip(self.windows, self.ropes, strict=True))
        num_layers = 1 + max(map(kinds.index, kinds))
        num_layers = min(num_layers + 1, self.num_layers)
        return replace(
            self,
            num_layers=num_layers,
            windows=self.windows[:num_layers],
            ropes=self.ropes[:num_layers],
        )


@dataclass(frozen=True, slots=True)
class FamilyDefaults:
    """What a family's ``config.json`` may leave unsaid, or says by its very name."""

    head_dim: int | None = None
    """None: hidden_size / num_attention_heads."""
    activation_key: str = "hidden_act"
    activation: str = "silu"
    is_tied: bool = False
    global_theta: float = 10_000.0
    local_theta: float | None = None
    """Rotary base of layers with a window; None: the same as of those without."""


def parse_heads(reader: ConfigReader, default_head_dim: int | None = None) -> AttentionHeads:
    """Head counts and size. Raises :class:`octavo.errors.ConfigError` where they do not fit."""
    hidden_size = reader.integer("hidden_size")
    num_heads = reader.integer("num_attention_heads")
    num_kv_heads = reader.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise reader.error(
            "num_key_value_heads", f"a divisor of num_attention_heads, which is {num_heads}"
        )
    if not reader.has("head_dim") and default_head_dim is None and hidden_size % num_heads:
        raise reader.error(
            "num_attention_heads", f"a divisor of hidden_size, which is {hidden_size}"
        )
    default = default_head_dim or hidden_size // num_heads
    head_dim = reader.integer("head_dim", default, maximum=_MAX_HEAD_DIM)
    return AttentionHeads(num_heads, num_kv_heads, head_dim)


def parse_num_layers(reader: ConfigReader) -> int:
    """How many layers the decoder has."""
    return reader.integer("num_hidden_layers", maximum=_MAX_LAYERS)


def uniform_layer_types(reader: ConfigReader, kind: str) -> tuple[str, ...]:
    """The same type for every layer, unless the file lists them."""
    return parse_layer_types(reader, (kind,) * parse_num_layers(reader))


def parse_layer_types(reader: ConfigReader, default: tuple[str, ...]) -> tuple[str, ...]:
    """Per layer, whether its attention is full or over a window."""
    if not reader.has("layer_types"):
        return default
    types = reader.strings("layer_types")
    if len(types) != len(default):
        raise reader.error("layer_types", f"one entry for each of the {len(default)} layers")
    if not set(types) <= {FULL, SLIDING}:
        raise reader.unsupported("layer_types", f"{FULL}, {SLIDING}")
    return types


def parse_window(reader: ConfigReader) -> int | None:
    """The attention window. null: none; absent: 4096, which is every family's first release's."""
    if reader.names("sliding_window") and not reader.has("sliding_window"):
        return None
    return reader.integer("sliding_window", 4096)


def parse_decoder(
    reader: ConfigReader,
    defaults: FamilyDefaults,
    *,
    layer_types: tuple[str, ...],
    window: int | None,
    attention_scale: float | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    post_norms: bool = False,
    unit_offset_norms: bool = False,
    embedding_scale: float = 1.0,
) -> DecoderConfig:
    """Read what all families share; the keyword arguments are what one family says.

    ``window`` applies to the layers of type ``sliding_attention``.
    Raises :class:`octavo.errors.ConfigError` or
    :class:`octavo.errors.UnsupportedModelError`, naming the key and its value.
    """
    _refuse_unsupported(reader)
    heads = parse_heads(reader, defaults.head_dim)
    if SLIDING in layer_types and window is None:
        raise reader.error("sliding_window", "an integer, as layer_types has sliding layers")
    ropes = parse_ropes(
        reader, heads.head_dim, {FULL: defaults.global_theta, SLIDING: defaults.local_theta}
    )
    return DecoderConfig(
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=parse_num_layers(reader),
        heads=heads,
        context_len=context_len(reader, ropes[FULL]),
        windows=tuple(window if kind == SLIDING else None for kind in layer_types),
        ropes=tuple(ropes[kind] for kind in layer_types),
        norm_eps=reader.number("rms_norm_eps", default=1e-6),
        attention_scale=attention_scale or heads.head_dim**-0.5,
        activation=_parse_activation(reader, defaults),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        post_norms=post_norms,
        unit_offset_norms=unit_offset_norms,
        embedding_scale=embedding_scale,
        is_tied=reader.boolean("tie_word_embeddings", defaults.is_tied),
    )


def _parse_activation(reader: ConfigReader, defaults: FamilyDefaults) -> Activation:
    name = reader.string(defaults.activation_key, defaults.activation)
    if name not in _ACTIVATIONS:
        raise reader.unsupported(defaults.activation_key, ", ".join(sorted(_ACTIVATIONS)))
    return _ACTIVATIONS[name]


def _refuse_unsupported(reader: ConfigReader) -> None:
    """Features that would change the result silently if they were passed over."""
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        reader.refuse(key, "soft-capped logits are not supported; supported: none")
    reader.refuse("use_bidirectional_attention", "only causal attention is supported")
    reader.refuse(
        "quantization_config",
        "quantised safetensors are not supported; use unquantised ones or a GGUF file",
    )

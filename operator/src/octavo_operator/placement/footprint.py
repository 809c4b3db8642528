"""What each GPU holds when a model is split: weights, keys and values, and room to work in.

The same sum that the worker makes when it sizes its cache (`octavo/runner/memory.py`): weights,
cache, the largest step's workspace, what captured steps keep, and what no allocator counts. The
worker measures the workspace on the card; here it is estimated from what its steps allocate, so it
is rather too large. A contract test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from octavo_operator.placement.model_shape import ModelShape
from octavo_operator.resources.engine import Engine

BLOCK_TOKENS: Final = 16
UNCOUNTED_BYTES: Final = 1 << 30
"""CUDA's context and loaded kernels: the worker's own figure."""

STEP_TOKENS: Final = 8192
"""Most tokens of a step unless --max-num-batched-tokens says otherwise."""

_CAPTURED_TOKENS: Final = 2112
"""Most tokens of a step that is captured, and so keeps its workspace."""

_DRAW_BYTES: Final = 17
"""For each request and entry of the vocabulary while tokens are drawn: the scores, and copies in
float32 for penalties and log probabilities."""

_PENALTY_BYTES: Final = 6
"""The same, kept from step to step: what each request has seen and said."""

_CAPTURED_DRAW_BYTES: Final = 2

_RANK_MULTIPLE: Final = 16
_ONE_BYTE_WEIGHTS: Final = frozenset({"fp8", "int8"})
"""Quantizations that the worker would make of a checkpoint that is not quantized."""


@dataclass(frozen=True, slots=True)
class Split:
    """tensor: GPUs of each layer; pipeline: stages of layers; nodes: machines of one replica."""

    tensor: int = 1
    pipeline: int = 1
    nodes: int = 1

    @property
    def num_gpus(self) -> int:
        return self.tensor * self.pipeline

    @property
    def gpus_per_node(self) -> int:
        return self.num_gpus // self.nodes


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of the fullest GPU. kv_bytes: of one request of `length` tokens."""

    weights_bytes: int
    adapters_bytes: int
    kv_bytes: int
    workspace_bytes: int
    length: int

    @property
    def fixed_bytes(self) -> int:
        """All but the cache."""
        return self.weights_bytes + self.adapters_bytes + self.workspace_bytes + UNCOUNTED_BYTES

    @property
    def total_bytes(self) -> int:
        """What must fit."""
        return self.fixed_bytes + self.kv_bytes

    @property
    def least_bytes(self) -> int:
        """What must fit whatever the workspace really takes: without it, no worker comes up."""
        return self.total_bytes - self.workspace_bytes


def split_problem(shape: ModelShape, split: Split) -> str | None:
    """Why the model cannot be split like that, as a sentence; None when it can."""
    tensor = split.tensor
    if split.pipeline > shape.num_layers:
        return f"its {shape.num_layers} layers cannot be dealt out to {split.pipeline} stages"
    if shape.num_heads % tensor:
        return f"its {shape.num_heads} attention heads cannot be shared out evenly by {tensor} GPUs"
    if shape.num_kv_heads % tensor and tensor % shape.num_kv_heads:
        return (
            f"its {shape.num_kv_heads} heads of keys and values can neither be shared out nor "
            f"repeated evenly by {tensor} GPUs"
        )
    if shape.intermediate_size % tensor:
        return (
            f"its MLPs of width {shape.intermediate_size} cannot be shared out evenly by {tensor} "
            f"GPUs"
        )
    return None


def footprint(shape: ModelShape, engine: Engine, split: Split) -> Footprint:
    """Of the stage that holds most."""
    length = engine.max_model_len or shape.context_len
    layers = -(-shape.num_layers // split.pipeline)
    heads = -(-shape.num_kv_heads // split.tensor)
    kv_bytes = 2 * heads * shape.head_dim * shape.item_bytes * layers
    return Footprint(
        weights_bytes=_weights_bytes(shape, engine, split, layers, heads),
        adapters_bytes=_adapters_bytes(shape, engine, split, layers, heads),
        kv_bytes=-(-length // BLOCK_TOKENS) * BLOCK_TOKENS * kv_bytes,
        workspace_bytes=_workspace_bytes(shape, engine, split, heads, length),
        length=length,
    )


def _weights_bytes(shape: ModelShape, engine: Engine, split: Split, layers: int, heads: int) -> int:
    """Where KV heads are fewer than GPUs, each GPU holds a copy of one."""
    all_layers_bytes = shape.weights_bytes - shape.tables_bytes
    kv_bytes = 2 * shape.hidden_size * shape.head_dim * shape.item_bytes * shape.num_layers
    rest_bytes = all_layers_bytes - kv_bytes * shape.num_kv_heads
    per_gpu = -(-rest_bytes // split.tensor) + kv_bytes * heads
    if engine.quantization in _ONE_BYTE_WEIGHTS:
        per_gpu //= shape.item_bytes
    # The first stage has the embedding, the last the head; only a single one has both.
    tables_bytes = shape.tables_bytes if split.pipeline == 1 else shape.table_bytes
    return -(-per_gpu * layers // shape.num_layers) + -(-tables_bytes // split.tensor)


def _adapters_bytes(
    shape: ModelShape, engine: Engine, split: Split, layers: int, heads: int
) -> int:
    """As the worker lays adapters out: A whole on each GPU, B split like the product it adds to."""
    if engine.lora is None:
        return 0
    rank = -(-engine.lora.max_rank // _RANK_MULTIPLE) * _RANK_MULTIPLE
    hidden, inner = shape.hidden_size, shape.intermediate_size // split.tensor
    query = shape.num_heads // split.tensor * shape.head_dim
    numbers = (
        3 * hidden + query + 2 * heads * shape.head_dim  # q, k, v
        + query + hidden  # output
        + 2 * hidden + 2 * inner  # gate, up
        + inner + hidden  # down
    )  # fmt: skip
    return engine.lora.max_adapters * rank * numbers * layers * shape.item_bytes


def _workspace_bytes(
    shape: ModelShape, engine: Engine, split: Split, heads: int, length: int
) -> int:
    """Of the largest eager step, whose draws reuse what its layers let go of, and of the largest
    captured one."""
    tokens = engine.number_argument("--max-num-batched-tokens") or STEP_TOKENS
    query = shape.num_heads // split.tensor * shape.head_dim
    inner = shape.intermediate_size // split.tensor
    numbers = 2 * shape.hidden_size + query + 2 * heads * shape.head_dim + 3 * inner
    token_bytes = numbers * shape.item_bytes
    draws = engine.max_num_seqs * shape.vocab_size
    eager_bytes = max(tokens * token_bytes, draws * _DRAW_BYTES) + draws * _PENALTY_BYTES
    captured_tokens = min(tokens, _CAPTURED_TOKENS)
    captured_bytes = captured_tokens * token_bytes + draws * _CAPTURED_DRAW_BYTES
    rows_bytes = (engine.max_num_seqs + 1) * length * 4
    return eager_bytes + captured_bytes + rows_bytes

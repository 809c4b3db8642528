"""``octavo inspect``: what a model is and what it takes of a GPU, without its weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from octavo.config import EngineConfig
from octavo.engine.model_shape import ModelShape, can_split, read_model_shape
from octavo.errors import ConfigError

_GIB = 1 << 30
_MOST_GPUS = 64


def run(parsed: argparse.Namespace) -> int:
    """Prints a table, or JSON. Raises what serving the model would, before it is served."""
    shape = read_model_shape(
        EngineConfig(
            model=parsed.model,
            revision=parsed.revision,
            download_dir=parsed.download_dir,
            dtype=parsed.dtype,
            hf_overrides=parsed.hf_overrides,
        )
    )
    _check_length(parsed.max_model_len, shape)
    text = msgspec.json.encode(shape).decode() if parsed.json else _table(shape, parsed)
    if parsed.output is None:
        print(text)
    else:
        _write(parsed.output, text)
    return 0


def _check_length(length: int | None, shape: ModelShape) -> None:
    """As serving the model would."""
    if length is not None and length > shape.context_len:
        raise ConfigError(
            f"--max-model-len is {length}, but the model was made for {shape.context_len} "
            "positions: lower it, or extend the model with --hf-overrides and a rope scaling."
        )


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(f"{text}\n")
    except OSError as error:
        raise ConfigError(
            f"--output is {path}, which cannot be written: {error.strerror or error}."
        ) from error
    print(f"octavo: written to {path}", file=sys.stderr)


def _table(shape: ModelShape, parsed: argparse.Namespace) -> str:
    length = parsed.max_model_len or shape.context_len
    kv_bytes = length * shape.kv_bytes_per_token
    splits = [str(n) for n in range(1, _MOST_GPUS + 1) if can_split(shape, n)]
    stored = "unknown" if shape.stored_bytes is None else _gib(shape.stored_bytes)
    table = "tied to the embedding" if shape.is_tied else "a table of its own"
    rows = [
        ("architecture", shape.architecture),
        ("layers", f"{shape.num_layers} of hidden size {shape.hidden_size}"),
        ("MLP", f"{shape.intermediate_size} wide"),
        ("heads", f"{shape.num_heads}, with {shape.num_kv_heads} for keys and values"),
        ("head size", f"{shape.head_dim}"),
        ("vocabulary", f"{shape.vocab_size} tokens, output head {table}"),
        ("context", f"{shape.context_len} tokens"),
        ("dtype", shape.dtype),
        ("files", stored),
        ("weights", f"{_gib(shape.weights_bytes)} in memory"),
        ("KV cache", f"{shape.kv_bytes_per_token / 1024:g} KiB a token"),
        (f"  of {length}", f"{_gib(kv_bytes)}: one request of that many tokens"),
        ("together", f"{_gib(shape.weights_bytes + kv_bytes)}, and a few GiB to work in"),
        ("splits over", f"{', '.join(splits)} GPUs"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.2f} GiB"

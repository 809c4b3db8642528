"""What a model would take of a GPU's memory, told from its configuration alone.

The model is built as serving builds it, of tensors without memory, so the sizes are those that the
engine will count; nothing here knows an architecture. The operator plans with the same figures
(`octavo_operator/placement/model_shape.py` reads them).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from octavo.config import EngineConfig
from octavo.engine.resolution import dtype_name, resolve_dtype
from octavo.kernels.select import select_kernels
from octavo.loading.absent_weights import META, AbsentWeights
from octavo.loading.checkpoint import Checkpoint, open_checkpoint
from octavo.loading.model_folder import read_json_if_there
from octavo.loading.safetensors_source import INDEX_NAME
from octavo.models import registry
from octavo.runner.kv_tensors import block_size_bytes

_CUDA = torch.device("cuda")
_SNAPSHOTS = "snapshots"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's sizes as one GPU would hold them; the whole of it, before any splitting."""

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_len: int
    """Longest request that the model was made for."""
    is_tied: bool
    """Whether the output head is the embedding table."""
    dtype: str
    """Of weights, activations, keys and values on a GPU."""
    weights_bytes: int
    """In memory, which is not what the files take where the dtype differs."""
    table_bytes: int
    """Of the embedding table; there are two of them unless ``is_tied``."""
    kv_bytes_per_token: int
    """Over all layers, keys and values."""
    stored_bytes: int | None
    """What the weights' files take; None where that is not known without fetching them."""
    revision: str | None
    """The hub's commit; None for models from elsewhere."""


def open_configuration(config: EngineConfig) -> Checkpoint:
    """Of the model only its configuration is read, and fetched."""
    return open_checkpoint(
        config.model,
        revision=config.revision,
        download_dir=config.download_dir,
        load_format="dummy",
        hf_overrides=config.hf_overrides,
        needs_tokenizer=False,
    )


def read_model_shape(config: EngineConfig) -> ModelShape:
    """Of the model only its configuration is read, and fetched.

    Raises what serving would: ModelLoadError, ConfigError, UnsupportedModelError.
    """
    checkpoint = open_configuration(config)
    family = registry.resolve(checkpoint.hf_config)
    dtype = resolve_dtype(config, checkpoint, _CUDA)
    # What the dense form takes is the same with all kernels; these need no GPU's libraries.
    kernels = select_kernels(torch.device("cpu"), "reference")
    model = family.build(AbsentWeights(dtype), kernels, dtype, META, family.config.context_len)
    shape = family.config
    return ModelShape(
        architecture=_architecture(checkpoint),
        num_layers=model.num_layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_heads=shape.heads.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        context_len=shape.context_len,
        is_tied=shape.is_tied,
        dtype=dtype_name(dtype),
        weights_bytes=model.weights_size_bytes,
        table_bytes=model.vocab_size * shape.hidden_size * dtype.itemsize,
        kv_bytes_per_token=block_size_bytes(model, 1, dtype),
        stored_bytes=_stored_bytes(checkpoint.path),
        revision=_commit(checkpoint.path),
    )


def can_split(shape: ModelShape, num_gpus: int) -> bool:
    """Whether each layer can be shared out evenly: whole heads, and whole or repeated KV heads."""
    return (
        shape.num_heads % num_gpus == 0
        and shape.intermediate_size % num_gpus == 0
        and (shape.num_kv_heads % num_gpus == 0 or num_gpus % shape.num_kv_heads == 0)
    )


def _architecture(checkpoint: Checkpoint) -> str:
    names = checkpoint.hf_config.get("architectures")
    first = names[0] if isinstance(names, list) and names else checkpoint.hf_config["model_type"]
    return str(first)


def _stored_bytes(path: Path) -> int | None:
    if path.is_file():
        return path.stat().st_size
    files = [file for file in path.glob("*.safetensors") if file.is_file()]
    if files:
        return sum(file.stat().st_size for file in files)
    metadata = read_json_if_there(path, INDEX_NAME).get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return total if isinstance(total, int) else None


def _commit(path: Path) -> str | None:
    """The hub's cache keeps a repository's files in a folder named after the commit."""
    return path.name if path.is_dir() and path.parent.name == _SNAPSHOTS else None

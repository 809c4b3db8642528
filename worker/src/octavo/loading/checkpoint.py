"""An opened model: its configuration, where its tokenizer lies, and how to get its weights.

The one face of this package: the engine asks for a checkpoint and never learns what kind of
files it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from octavo.errors import ConfigError, ModelLoadError
from octavo.gguf.container import GGUFContainer
from octavo.loading import embedding_config, gguf_config
from octavo.loading.demo_model import DEMO_GENERATION_CONFIG, DEMO_MODEL
from octavo.loading.dummy_source import DummySource
from octavo.loading.embedding_config import EmbeddingConfig
from octavo.loading.gguf_source import GGUFSource
from octavo.loading.model_files import find_model
from octavo.loading.model_folder import file_inside, read_json, read_json_if_there
from octavo.loading.needed_files import NeededFiles
from octavo.loading.safetensors_source import SafetensorsSource
from octavo.models.interface import WeightSource

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_MAX_TOKEN_ID = 2**31 - 1
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


class OpenedWeights(WeightSource, Protocol):
    """A weight source that can tell what was left in it."""

    def check_all_used(self, can_ignore: Callable[[str], bool]) -> None:
        """Raises WeightError when tensors are left for which ``can_ignore`` is false."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files, understood as far as can be without knowing its architecture."""

    path: Path
    """The folder, or the ``.gguf`` file."""
    hf_config: Mapping[str, object]
    """``config.json``, or its equivalent made of GGUF metadata, with the overrides."""
    generation_config: Mapping[str, object]
    """``generation_config.json``; empty when there is none."""
    dtype: torch.dtype
    """What dense weights should be served as, as the checkpoint has it."""
    eos_token_ids: list[int]
    """Ids that end generation."""
    tokenizer_path: str | None
    """What :meth:`octavo.tokenization.tokenizer.Tokenizer.open` takes; None: no tokenizer."""
    embedding: EmbeddingConfig
    """How its embeddings are made."""
    open_weights: Callable[[torch.device, torch.dtype], OpenedWeights] = field(repr=False)
    """Opens the weights; dummy ones are made on the device and in the dtype given."""


def open_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    load_format: str = "auto",
    hf_overrides: Mapping[str, object] | None = None,
    needs_tokenizer: bool = True,
) -> Checkpoint:
    """Find (fetch, if need be) a model's files and read everything but the weights.

    ``load_format``: ``auto``, ``safetensors``, ``gguf``, or ``dummy`` for random weights. Raises
    ModelLoadError for files that are missing or broken, ConfigError for a load format that does
    not fit them, UnsupportedModelError for a GGUF architecture that is not known.
    """
    is_dummy = load_format == "dummy"
    needed = NeededFiles.ALL
    if is_dummy:
        needed = NeededFiles.NO_WEIGHTS if needs_tokenizer else NeededFiles.SHAPE
    path = find_model(model, revision=revision, download_dir=download_dir, needed=needed)
    _check_load_format(load_format, path)
    if path.suffix == ".gguf" and path.is_file():
        defaults = DEMO_GENERATION_CONFIG if model == DEMO_MODEL else {}
        return _open_gguf(path, hf_overrides or {}, is_dummy, defaults)
    return _open_folder(path, hf_overrides or {}, is_dummy, needs_tokenizer)


def _open_gguf(
    path: Path,
    overrides: Mapping[str, object],
    is_dummy: bool,
    generation_config: Mapping[str, object],
) -> Checkpoint:
    container = GGUFContainer.open(path)
    stored = gguf_config.hf_config(container)
    heads = stored["num_attention_heads"], stored["num_key_value_heads"]
    config = _overridden(stored, overrides)

    def open_weights(device: torch.device, dtype: torch.dtype) -> OpenedWeights:
        if is_dummy:
            return DummySource(device, dtype)
        num_heads, num_kv_heads = heads
        assert isinstance(num_heads, int)
        assert isinstance(num_kv_heads, int)
        return GGUFSource(container, num_heads, num_kv_heads)

    has_tokenizer = "tokenizer.ggml.tokens" in container.metadata
    return Checkpoint(
        path=path,
        hf_config=config,
        generation_config=generation_config,
        dtype=_dtype(config, path),
        eos_token_ids=_token_ids(config.get("eos_token_id"), path),
        tokenizer_path=str(path) if has_tokenizer else None,
        embedding=embedding_config.of_gguf(container.metadata, config),
        open_weights=open_weights,
    )


def _open_folder(
    folder: Path, overrides: Mapping[str, object], is_dummy: bool, needs_tokenizer: bool
) -> Checkpoint:
    config = _overridden(read_json(folder, "config.json"), overrides)
    generation_config = read_json_if_there(folder, "generation_config.json")
    eos = generation_config.get("eos_token_id", _nested(config, "eos_token_id"))

    def open_weights(device: torch.device, dtype: torch.dtype) -> OpenedWeights:
        return DummySource(device, dtype) if is_dummy else SafetensorsSource(folder)

    return Checkpoint(
        path=folder,
        hf_config=config,
        generation_config=generation_config,
        dtype=_dtype(config, folder),
        eos_token_ids=_token_ids(eos, folder),
        tokenizer_path=_tokenizer_path(folder, needs_tokenizer),
        embedding=embedding_config.of_folder(folder, config),
        open_weights=open_weights,
    )


def _tokenizer_path(folder: Path, is_needed: bool) -> str | None:
    if not (folder / "tokenizer.json").exists():
        if not is_needed:
            return None
        other = "it has tokenizer.model only; " if (folder / "tokenizer.model").exists() else ""
        raise ModelLoadError(
            f"{folder} holds no tokenizer.json; {other}add it (transformers' AutoTokenizer writes "
            "it with save_pretrained), or serve token ids with --skip-tokenizer-init."
        )
    for name in _TOKENIZER_FILES:
        if (folder / name).exists():
            file_inside(folder, name)
    return str(folder)


def _check_load_format(load_format: str, path: Path) -> None:
    is_gguf = path.suffix == ".gguf" and path.is_file()
    if (load_format == "gguf" and not is_gguf) or (load_format == "safetensors" and is_gguf):
        raise ConfigError(
            f"load_format is {load_format!r}, but {path} is "
            f"{'a GGUF file' if is_gguf else 'a folder'}; leave it out to use what is there."
        )


def _overridden(config: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
    """Keys replaced; ``text_config`` key by key, as it is a configuration of its own."""
    merged = {**config, **overrides}
    stored, override = config.get("text_config"), overrides.get("text_config")
    if isinstance(stored, Mapping) and isinstance(override, Mapping):
        merged["text_config"] = {**stored, **override}
    return merged


def _dtype(config: Mapping[str, object], path: Path) -> torch.dtype:
    name = _nested(config, "dtype") or _nested(config, "torch_dtype") or "bfloat16"
    if not isinstance(name, str) or name not in DTYPES:
        raise ModelLoadError(
            f"The dtype of {path} is {name!r:.200}, which is not supported; supported: "
            f"{', '.join(DTYPES)}. Choose one with --dtype."
        )
    return DTYPES[name]


def _nested(config: Mapping[str, object], key: str) -> object:
    """A key of the configuration, or of its text part in models that also see images."""
    value = config.get(key)
    text = config.get("text_config")
    return text.get(key) if value is None and isinstance(text, Mapping) else value


def _token_ids(value: object, path: Path) -> list[int]:
    """One id, a list of them, or none."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(id) is int and 0 <= id <= _MAX_TOKEN_ID for id in ids):
        raise ModelLoadError(
            f"eos_token_id is {value!r:.80} in {path}; it must be a token id, of "
            f"{_MAX_TOKEN_ID} at most, or a list of them."
        )
    return list(ids)

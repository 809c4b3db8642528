"""How a model says that its embeddings are made: sentence-transformers' and GGUF's words for it.

Knows ``1_Pooling/config.json``, ``matryoshka_dimensions`` and ``pooling_type``; knows nothing of
tensors. A model that says nothing is read by its last token, as decoders are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from octavo.errors import ModelLoadError
from octavo.loading.model_folder import read_json_if_there
from octavo.pooling_params import Pooling

POOLING_FILE = "1_Pooling/config.json"
_log = logging.getLogger(__name__)
_SENTENCE_TRANSFORMERS: Mapping[str, Pooling] = {
    "lasttoken": "last",
    "mean": "mean",
    "mean_tokens": "mean",
}
_GGUF: Mapping[object, Pooling] = {1: "mean", 3: "last"}
"""llama.cpp's ``LLAMA_POOLING_TYPE_*``."""


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """What a checkpoint says of its embeddings."""

    pooling: Pooling = "last"
    dimensions: list[int] | None = field(default_factory=list)
    """Fewer components that an embedding may be cut to; None: any number, empty: none."""


def of_folder(folder: Path, hf_config: Mapping[str, object]) -> EmbeddingConfig:
    """From a Hugging Face folder. Raises ModelLoadError for files that hold something else."""
    stored = read_json_if_there(folder, POOLING_FILE)
    modes = [key.removeprefix("pooling_mode_") for key, value in stored.items() if value is True]
    if isinstance(stored.get("pooling_mode"), str):
        modes = [str(stored["pooling_mode"])]
    known = [_SENTENCE_TRANSFORMERS[mode] for mode in modes if mode in _SENTENCE_TRANSFORMERS]
    if stored and len(known) != 1:
        _log.warning(
            "%s asks for the pooling %s, which is not offered: embeddings are of the last token "
            "unless a request says otherwise.",
            folder / POOLING_FILE,
            " + ".join(modes) or "(none)",
        )
        known = []
    return EmbeddingConfig(known[0] if known else "last", _dimensions(hf_config))


def of_gguf(metadata: Mapping[str, object], hf_config: Mapping[str, object]) -> EmbeddingConfig:
    """From GGUF metadata."""
    architecture = metadata.get("general.architecture")
    pooling = _GGUF.get(metadata.get(f"{architecture}.pooling_type"), "last")
    return EmbeddingConfig(pooling, _dimensions(hf_config))


def _dimensions(hf_config: Mapping[str, object]) -> list[int] | None:
    listed = hf_config.get("matryoshka_dimensions")
    if listed is None:
        return None if hf_config.get("is_matryoshka") is True else []
    if not isinstance(listed, list) or not all(type(one) is int and one > 0 for one in listed):
        raise ModelLoadError(
            f"matryoshka_dimensions in config.json is {listed!r:.120}; it must be a list of "
            "positive integers. Remove it to serve whole embeddings only."
        )
    return sorted(listed)

"""What a model says of its embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelLoadError
from octavo.loading.embedding_config import POOLING_FILE, EmbeddingConfig, of_folder, of_gguf


@pytest.mark.parametrize(
    ("stored", "pooling"),
    [
        (None, "last"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_sentence_transformers_pooling_is_followed(
    tmp_path: Path, stored: dict[str, Any] | None, pooling: str
) -> None:
    if stored is not None:
        (tmp_path / POOLING_FILE).parent.mkdir()
        (tmp_path / POOLING_FILE).write_text(json.dumps(stored))
    assert of_folder(tmp_path, {}).pooling == pooling


def test_a_pooling_that_is_not_offered_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / POOLING_FILE).parent.mkdir()
    (tmp_path / POOLING_FILE).write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert of_folder(tmp_path, {}).pooling == "last"
    assert "cls_token" in caplog.text


@pytest.mark.parametrize(
    ("config", "dimensions"),
    [
        ({}, []),
        ({"is_matryoshka": True}, None),
        ({"matryoshka_dimensions": [256, 64]}, [64, 256]),
        ({"is_matryoshka": True, "matryoshka_dimensions": [32]}, [32]),
    ],
)
def test_only_models_made_for_it_may_be_cut(
    tmp_path: Path, config: dict[str, Any], dimensions: list[int] | None
) -> None:
    assert of_folder(tmp_path, config).dimensions == dimensions
    assert of_gguf({}, config) == EmbeddingConfig("last", dimensions)


def test_dimensions_that_are_none_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="matryoshka_dimensions"):
        of_folder(tmp_path, {"matryoshka_dimensions": ["a"]})


def test_gguf_names_its_pooling_by_number() -> None:
    metadata = {"general.architecture": "qwen3", "qwen3.pooling_type": 1}
    assert of_gguf(metadata, {}).pooling == "mean"
    assert of_gguf(metadata | {"qwen3.pooling_type": 2}, {}).pooling == "last"

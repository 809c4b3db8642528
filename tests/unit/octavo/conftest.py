"""For tests of the worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_models import save_byte_tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer with a token for each byte."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_byte_tokenizer(folder)
    return folder

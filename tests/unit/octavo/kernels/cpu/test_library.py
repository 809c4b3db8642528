"""Loading the compiled kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.kernels.cpu import LibraryMissingError, library
from octavo.kernels.cpu.library import load_library, runnable_variants


def test_the_best_variant_of_the_machine_is_loaded() -> None:
    best = load_library()
    assert best.variant == runnable_variants()[0]
    assert best.lanes == max(load_library(variant).lanes for variant in runnable_variants())


def test_a_missing_library_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    load_library.cache_clear()
    with pytest.raises(LibraryMissingError, match="build_ext --inplace"):
        load_library()


def test_a_file_that_is_no_library_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    library.library_path("generic").write_bytes(b"not a library")
    load_library.cache_clear()
    with pytest.raises(LibraryMissingError, match="cannot be loaded"):
        load_library("generic")


def test_wrong_arguments_raise_instead_of_crashing() -> None:
    kernels = load_library()
    with pytest.raises(TypeError, match="wrong number of arguments"):
        kernels.linear(1, 2, 3)
    with pytest.raises(TypeError):
        kernels.advise("not a number", 0)

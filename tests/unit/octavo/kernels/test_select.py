"""Which kernels a device gets."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch

from octavo.errors import ConfigError
from octavo.kernels.cpu import library
from octavo.kernels.select import select_kernels

CPU = torch.device("cpu")


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    library.load_library.cache_clear()


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_cpu_gets_the_cpu_kernels(name: str) -> None:
    assert select_kernels(CPU, name).name == "cpu"


def test_the_reference_can_be_asked_for() -> None:
    assert select_kernels(CPU, "reference").name == "reference"


@pytest.mark.usefixtures("without_library")
def test_a_missing_library_falls_back_to_the_reference_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert select_kernels(CPU).name == "reference"
    assert len(caplog.records) == 1
    assert "build_ext" in caplog.text


@pytest.mark.usefixtures("without_library")
def test_a_missing_library_is_an_error_when_its_kernels_were_asked_for() -> None:
    with pytest.raises(ConfigError, match="cpu kernels cannot be used here"):
        select_kernels(CPU, "cpu")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="auto, reference, cpu, triton"):
        select_kernels(CPU, "fast")


def test_a_device_without_kernels_is_refused() -> None:
    with pytest.raises(ConfigError, match="no kernels for device 'meta'"):
        select_kernels(torch.device("meta"))


def test_a_cuda_device_without_triton_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "octavo.kernels.triton", None)
    with pytest.raises(ConfigError, match="triton kernels cannot be used here"):
        select_kernels(torch.device("cuda"))

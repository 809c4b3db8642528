"""Who starts slowly because Python compiles torch each time is told so, and how to end it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from octavo.engine.bytecode import warn_unless_kept


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "compiled_or_not").mkdir()
    (tmp_path / "compiled_or_not" / "__init__.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.delitem(sys.modules, "compiled_or_not", raising=False)
    return tmp_path / "compiled_or_not"


def imported() -> ModuleType:
    importlib.invalidate_caches()
    return importlib.import_module("compiled_or_not")


def test_package_whose_bytecode_cannot_be_kept_is_told_of_with_the_remedy(
    package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    warn_unless_kept(imported())
    assert "compiled_or_not is compiled to bytecode at each start" in caplog.text
    assert f"python -m compileall -q {package.parent}" in caplog.text


def test_kept_bytecode_is_not_told_of(
    package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    warn_unless_kept(imported())
    assert list(package.glob("__pycache__/*.pyc"))
    assert not caplog.text


def test_bytecode_kept_elsewhere_counts(
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "kept"))
    warn_unless_kept(imported())
    assert not list(package.glob("__pycache__/*.pyc"))
    assert not caplog.text

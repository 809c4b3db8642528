"""Local mode with real processes of a fake worker, whose pauses are short."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pods put their folders, so that what they leave behind can be seen."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "pod_process.READINESS_POLL_S",
        "pod_process.FIRST_BACKOFF_S",
        "session.FILE_POLL_S",
    ):
        monkeypatch.setattr(f"octavo_operator.local.{name}", 0.1)
    monkeypatch.setattr("octavo_operator.local.container._SHUTDOWN_DELAY_S", "0.1")


@pytest.fixture
def patient_shutdown(short_pauses: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods take requests for as long after SIGTERM as they do where nobody shortens it."""
    monkeypatch.setattr("octavo_operator.local.container._SHUTDOWN_DELAY_S", "1")

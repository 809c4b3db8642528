"""``octavo serve`` where it cannot begin: one sentence, and a status for scripts."""

from __future__ import annotations

import pytest

from fake_engine import FakeEngine
from octavo.cli import main, serve
from octavo.errors import ModelLoadError
from octavo.server.listening import open_listener


def test_port_in_use_is_told_before_an_engine_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "AsyncEngine", None)
    with open_listener("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "m", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"octavo: Port {port} on 127.0.0.1 is in use; stop what listens there, "
        "or choose another with --port.\n"
    )


def test_load_error_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken_engine(*arguments: object) -> FakeEngine:
        engine = FakeEngine(ready=False)
        engine.fail_to_load(ModelLoadError("m has no config.json; give a model's folder."))
        return engine

    monkeypatch.setattr(serve, "AsyncEngine", broken_engine)
    assert main(["serve", "m", "--port", "0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "octavo: m has no config.json; give a model's folder."
    assert "Traceback" not in "".join(lines)

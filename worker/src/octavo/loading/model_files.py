"""From what the user typed to files on this machine.

``MODEL`` is a folder or a ``.gguf`` file (also as ``file:///PATH``), ``demo://NAME``,
``s3://BUCKET/PREFIX``, or on the hub ``ORG/NAME``, ``hf://ORG/NAME`` or
``hf://ORG/NAME/FILE.gguf``. What exists locally wins over the hub.
"""

from __future__ import annotations

import re
from pathlib import Path

from octavo.errors import ModelLoadError
from octavo.loading import bucket, bucket_store, hub
from octavo.loading.demo_model import DEMO_MODEL, fetch_demo_model
from octavo.loading.needed_files import NeededFiles

_HUB_SCHEME = "hf://"
_DEMO_SCHEME = "demo://"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/([\w./-]+\.gguf)")


def find_model(
    model: str,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    needed: NeededFiles = NeededFiles.ALL,
    is_checked: bool = False,
) -> Path:
    """The folder or the ``.gguf`` file that holds the model, fetched where it must be.

    ``is_checked``: also read what is there already, once, and compare it with its digest.

    Raises ModelLoadError where it cannot be found, saying in one sentence why.
    """
    model = without_file_scheme(model)
    if model.startswith(_DEMO_SCHEME):
        if model != DEMO_MODEL:
            raise ModelLoadError(f"{model} is not a demo model; there is {DEMO_MODEL}.")
        return fetch_demo_model()
    if model.startswith(bucket_store.SCHEME):
        return _local(bucket.fetch(bucket.parse_uri(model), download_dir, needed))
    if not model.startswith(_HUB_SCHEME):
        path = Path(model).expanduser()
        if path.exists():
            return _local(path)
        _refuse_what_looks_local(model, path)
    name = _parse_hub_name(model, revision)
    path = hub.fetch(name, download_dir, needed, is_checked=is_checked)
    if path.is_dir() and not (path / "config.json").exists():
        raise ModelLoadError(
            f"{name} has no config.json; if it holds GGUF files, name one of them: "
            f"hf://{name.repository}/FILE.gguf."
        )
    return path


def without_file_scheme(location: str) -> str:
    """``file:///PATH`` as the path that it is; anything else as it stands."""
    return location.removeprefix("file://") if location.startswith("file:///") else location


def _local(path: Path) -> Path:
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelLoadError(f"{path} is not a .gguf file; give that, or a model's folder.")
        return path
    if (path / "config.json").exists():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:5])
        raise ModelLoadError(f"{path} holds {len(files)} GGUF files ({names}); name one of them.")
    if (path / "adapter_config.json").exists():
        raise ModelLoadError(
            f"{path} holds a LoRA adapter, not a model; give the model that it was trained on, and "
            f"--enable-lora --lora-modules NAME={path} (docs/lora.md)."
        )
    raise ModelLoadError(f"{path} holds neither a config.json nor a .gguf file.")


def _refuse_what_looks_local(model: str, path: Path) -> None:
    if model.startswith(("/", "./", "../", "~")) or model.count("/") != 1:
        if _HUB_FILE.fullmatch(model):
            return
        raise ModelLoadError(
            f"{path} does not exist; give a model's folder, a .gguf file, or ORG/NAME on the hub."
        )


def _parse_hub_name(model: str, revision: str | None) -> hub.HubModel:
    name = model.removeprefix(_HUB_SCHEME)
    match = _HUB_FILE.fullmatch(name)
    if match:
        return hub.HubModel(match[1], revision, match[2])
    if not _HUB_NAME.fullmatch(name):
        raise ModelLoadError(
            f"{model!r} is neither a folder, nor a .gguf file, nor ORG/NAME on the hub."
        )
    return hub.HubModel(name, revision)

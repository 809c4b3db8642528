"""Fetching models from S3 and object stores that speak like it, into folders that are kept.

Knows versions, locks, parts that were left, and digests; how a store is asked is
:mod:`octavo.loading.bucket_store`.
"""

from __future__ import annotations

import hashlib
import http.client
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from octavo.errors import ModelLoadError, SourceUnreachableError
from octavo.loading.bucket_store import BucketModel, BucketObject, BucketStore
from octavo.loading.cache_folder import cache_folder
from octavo.loading.folder_lock import folder_lock
from octavo.loading.needed_files import NeededFiles

_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]*[a-z0-9])(?:/(.*))?")
_MD5_ETAG = re.compile(r"[0-9a-f]{32}")
_ATTEMPTS = 5


def fetch(
    model: BucketModel, download_dir: str | None, needed: NeededFiles = NeededFiles.ALL
) -> Path:
    """The folder that holds the model, downloaded where it is not yet.

    One process downloads and others wait. What an interrupted download left is taken up again;
    each file is checked against the store's digest before it gets its name. Raises ModelLoadError.
    """
    folder = _cache(model, download_dir)
    store = BucketStore(model)
    with _kept_in(folder, model):
        objects = store.wanted()
        if not objects:
            raise ModelLoadError(
                f"{model} holds no model: there is no .safetensors, .gguf or .json file right "
                "below it; check bucket and prefix."
            )
        for item in _needed(objects, needed):
            _fetch_object(store, item, folder)
    return folder


def fetch_version(model: BucketModel, download_dir: str | None, names: Sequence[str]) -> Path:
    """A folder with these objects as they are now; otherwise as :func:`fetch`.

    Other contents get another folder, so what was found once stays as it was, whatever becomes
    of the bucket.
    """
    store = BucketStore(model)
    objects = [item for item in store.wanted() if item.name in names]
    if len(objects) < len(names):
        missing = ", ".join(sorted({*names} - {item.name for item in objects}))
        raise ModelLoadError(f"{model} lacks {missing}; check bucket and prefix.")
    version = hashlib.sha256(repr([(item.name, item.etag) for item in objects]).encode())
    folder = _cache(model, download_dir) / ".versions" / version.hexdigest()[:32]
    with _kept_in(folder, model):
        for item in objects:
            _fetch_object(store, item, folder)
    return folder


def parse_uri(uri: str) -> BucketModel:
    """``s3://BUCKET/PREFIX``; raises ModelLoadError for anything else."""
    match = _URI.fullmatch(uri)
    prefix = (match[2] or "").strip("/") if match else ""
    if match is None or ".." in prefix.split("/"):
        raise ModelLoadError(f"{uri!r:.200} is no bucket; write s3://BUCKET/PREFIX.")
    return BucketModel(match[1], prefix)


def _cache(model: BucketModel, download_dir: str | None) -> Path:
    root = Path(download_dir) if download_dir else cache_folder()
    return root / "s3" / model.bucket / model.prefix


@contextmanager
def _kept_in(folder: Path, model: BucketModel) -> Iterator[None]:
    """The folder is there, and no other process's meanwhile."""
    try:
        with folder_lock(folder.parent / f".{folder.name}.lock"):
            folder.mkdir(parents=True, exist_ok=True)
            yield
    except OSError as exc:
        raise ModelLoadError(
            f"{model} cannot be kept in {folder}: {exc.strerror or exc}; what is there is kept."
        ) from exc


def _needed(objects: list[BucketObject], needed: NeededFiles) -> list[BucketObject]:
    """A GGUF file has its configuration in itself, so such a model is fetched whole."""
    names = {item.name for item in objects}
    if needed is NeededFiles.ALL or "config.json" not in names:
        return objects
    return [item for item in objects if not item.name.endswith((".safetensors", ".gguf"))]


def _fetch_object(store: BucketStore, item: BucketObject, folder: Path) -> None:
    target = folder / item.name
    memory = folder / f".{target.name}.etag"
    is_known = memory.is_file() and memory.read_text() == item.etag
    if is_known and target.is_file() and target.stat().st_size == item.size_bytes:
        return
    # Named by what it holds: a part of an older object is never continued.
    name = hashlib.sha256(item.etag.encode()).hexdigest()[:16]
    partial = folder / f".{target.name}.{name}.part"
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            checksum = store.download(item, partial)
            _check(store.model, item, partial, checksum)
            break
        except (OSError, http.client.HTTPException) as exc:
            if attempt == _ATTEMPTS:
                raise SourceUnreachableError(
                    f"{store.model}: {item.key} breaks off ({exc}); try again, what is there "
                    "already is kept."
                ) from exc
    memory.unlink(missing_ok=True)
    partial.replace(target)
    memory.write_text(item.etag)


def _check(model: BucketModel, item: BucketObject, path: Path, sha256: str | None) -> None:
    """Size, and the strongest digest the store gives: SHA-256, or MD5 for an object in one part."""
    size_bytes = path.stat().st_size
    is_right = size_bytes == item.size_bytes
    if is_right and (sha256 is not None or _MD5_ETAG.fullmatch(item.etag)):
        digest = hashlib.md5(usedforsecurity=False) if sha256 is None else hashlib.sha256()
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
        is_right = digest.hexdigest() == (sha256 or item.etag)
    if not is_right:
        path.unlink()
        raise ModelLoadError(
            f"{model}: {item.key} is damaged ({size_bytes} of {item.size_bytes} bytes, or another "
            "digest than the store's); it is removed, so try again."
        )

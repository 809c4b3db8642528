"""Fetching models from S3 and object stores that speak like it.

Knows listing, ranges, ETags and checksums. Credentials and endpoint come from the variables that
every S3 tool reads (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION,
AWS_ENDPOINT_URL); without a key, requests are anonymous.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from octavo.errors import ModelLoadError, SourceForbiddenError, SourceUnreachableError
from octavo.loading.bucket_signature import Credentials, canonical_query, signed_headers
from octavo.loading.cache_folder import cache_folder
from octavo.loading.folder_lock import folder_lock
from octavo.loading.needed_files import NeededFiles

SCHEME = "s3://"
_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]*[a-z0-9])(?:/(.*))?")
_WANTED = re.compile(r"[^/]+\.(safetensors|gguf|json|jinja)")
"""Files beside each other; folders hold other forms of a model, and pickles are never read."""

_MD5_ETAG = re.compile(r"[0-9a-f]{32}")
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class BucketModel:
    """The objects below ``prefix`` of a bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class _Object:
    key: str
    size_bytes: int
    etag: str

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]


def fetch(
    model: BucketModel, download_dir: str | None, needed: NeededFiles = NeededFiles.ALL
) -> Path:
    """The folder that holds the model, downloaded where it is not yet.

    One process downloads and others wait. What an interrupted download left is taken up again;
    each file is checked against the store's digest before it gets its name. Raises ModelLoadError.
    """
    folder = _cache(model, download_dir)
    store = _Store(model)
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
    store = _Store(model)
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


def _needed(objects: list[_Object], needed: NeededFiles) -> list[_Object]:
    """A GGUF file has its configuration in itself, so such a model is fetched whole."""
    names = {item.name for item in objects}
    if needed is NeededFiles.ALL or "config.json" not in names:
        return objects
    return [item for item in objects if not item.name.endswith((".safetensors", ".gguf"))]


def _fetch_object(store: _Store, item: _Object, folder: Path) -> None:
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


def _check(model: BucketModel, item: _Object, path: Path, sha256: str | None) -> None:
    """Size, and the strongest digest the store gives: SHA-256, or MD5 for an object in one part."""
    size_bytes = path.stat().st_size
    is_md5 = sha256 is None and _MD5_ETAG.fullmatch(item.etag) is not None
    digest = hashlib.sha256() if sha256 is not None else hashlib.md5(usedforsecurity=False)
    if sha256 is not None or is_md5:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    is_right = size_bytes == item.size_bytes and (
        digest.hexdigest() == (sha256 or item.etag) if sha256 is not None or is_md5 else True
    )
    if not is_right:
        path.unlink()
        raise ModelLoadError(
            f"{model}: {item.key} is damaged ({size_bytes} of {item.size_bytes} bytes, or another "
            "digest than the store's); it is removed, so try again."
        )


class _Store:
    """Reads one bucket."""

    def __init__(self, model: BucketModel) -> None:
        self.model = model
        environment = os.environ
        self._region = (
            environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
        )
        endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
        if endpoint:
            self._root = f"{endpoint.rstrip('/')}/{model.bucket}"
        elif "." in model.bucket:
            # The certificate of virtual hosts covers one level of names only.
            self._root = f"https://s3.{self._region}.amazonaws.com/{model.bucket}"
        else:
            self._root = f"https://{model.bucket}.s3.{self._region}.amazonaws.com"
        key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
        self._credentials = (
            Credentials(key, secret, environment.get("AWS_SESSION_TOKEN"))
            if key and secret
            else None
        )

    def wanted(self) -> list[_Object]:
        """Objects of a model, by key."""
        return [item for item in self._listed() if _WANTED.fullmatch(self._relative(item.key))]

    def download(self, item: _Object, partial: Path) -> str | None:
        """Complete ``partial``; the SHA-256 that the store has for the object, None for none."""
        start = partial.stat().st_size if partial.exists() else 0
        if start > item.size_bytes:
            partial.unlink()
            start = 0
        headers = {"x-amz-checksum-mode": "ENABLED", "If-Match": f'"{item.etag}"'}
        if start == item.size_bytes and start > 0:
            return None
        if start:
            headers["Range"] = f"bytes={start}-"
        with self._get(f"/{quote(item.key, safe='/-_.~')}", {}, headers) as answer:
            is_rest = answer.status == 206
            with partial.open("ab" if is_rest else "wb") as file:
                while chunk := answer.read(_CHUNK_BYTES):
                    file.write(chunk)
            whole = answer.headers.get("x-amz-checksum-sha256", "")
        if partial.stat().st_size < item.size_bytes:
            raise OSError(f"{partial.stat().st_size} of {item.size_bytes} bytes")
        return _hex(whole)

    def _relative(self, key: str) -> str:
        return key.removeprefix(self.model.prefix).lstrip("/")

    def _listed(self) -> Iterator[_Object]:
        prefix = f"{self.model.prefix}/" if self.model.prefix else ""
        query = {"list-type": "2", "prefix": prefix, "delimiter": "/"}
        while True:
            page = self._page(query)
            space = page.tag.partition("}")[0] + "}" if page.tag.startswith("{") else ""
            for entry in page.iter(f"{space}Contents"):
                yield _Object(
                    key=entry.findtext(f"{space}Key") or "",
                    size_bytes=int(entry.findtext(f"{space}Size") or 0),
                    etag=(entry.findtext(f"{space}ETag") or "").strip('"'),
                )
            token = page.findtext(f"{space}NextContinuationToken")
            if not token:
                return
            query["continuation-token"] = token

    def _page(self, query: Mapping[str, str]) -> ElementTree.Element:
        path = "/" if self._root.count("/") == 2 else ""
        try:
            with self._get(path, query, {}) as answer:
                return ElementTree.fromstring(answer.read())
        except (OSError, http.client.HTTPException, ElementTree.ParseError) as exc:
            raise SourceUnreachableError(
                f"{self.model} cannot be listed: {self._root} answered amiss ({exc}); try again."
            ) from exc

    def _get(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        url = self._root + path
        sent = dict(headers)
        if self._credentials is not None:
            now = datetime.now(UTC)
            sent = signed_headers(url, query, headers, self._credentials, self._region, now)
        full = f"{url}?{canonical_query(query)}" if query else url
        request = urllib.request.Request(full, headers=sent)
        try:
            answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as exc:
            raise self._refused(exc.code) from exc
        except urllib.error.URLError as exc:
            raise SourceUnreachableError(
                f"{self.model} cannot be fetched: {self._root} cannot be reached ({exc.reason}); "
                "check the network and AWS_ENDPOINT_URL."
            ) from exc
        return answer

    def _refused(self, status: int) -> ModelLoadError:
        kind, hint = {
            301: (ModelLoadError, "set AWS_REGION to the bucket's region"),
            400: (ModelLoadError, "check AWS_REGION and the key"),
            401: (SourceForbiddenError, "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
            403: (
                SourceForbiddenError,
                "the key (or nobody, without one) may not read it; check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY and the bucket's policy",
            ),
            404: (ModelLoadError, "there is no such bucket or object; check the URI"),
            412: (SourceUnreachableError, "an object changed meanwhile; try again"),
        }.get(status, (SourceUnreachableError, "try again later"))
        return kind(f"{self._root} answered {status} for {self.model}; {hint}.")


def _hex(checksum: str) -> str | None:
    """Base64 as hex; None for none, and for the composite checksum of a multipart upload."""
    try:
        raw = base64.b64decode(checksum, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw.hex() if len(raw) == hashlib.sha256().digest_size else None

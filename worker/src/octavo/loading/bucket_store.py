"""Reading one bucket of S3, or of an object store that speaks like it.

Knows listing, ranges, ETags, checksums, and what a store's refusals mean; knows nothing of how
files are kept. Credentials and endpoint come from the variables that every S3 tool reads
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL);
without a key, requests are anonymous. Source: Amazon S3 API Reference (ListObjectsV2, GetObject,
"Error responses").
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from octavo.errors import ModelLoadError, SourceForbiddenError, SourceUnreachableError
from octavo.loading.bucket_signature import Credentials, canonical_query, signed_headers

SCHEME = "s3://"
_CHUNK_BYTES = 1 << 20
_WANTED = re.compile(r"[^/\x00-\x1f\x7f]+\.(safetensors|gguf|json|jinja)")
"""Files beside each other; folders hold other forms of a model, and pickles are never read."""
_SIZE = re.compile(r"\d{1,15}")
_ETAG = re.compile(r"[\x20-\x7e]{1,256}")
_MAX_PAGE_BYTES = 1 << 23
"""Of a thousand objects, of the longest keys there are."""
_MAX_PAGES = 1000
_TIMEOUT_S = 60
PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Before each further attempt where a store is busy, or was there and is not."""
_MOST_PAUSE_S = 20.0
"""Of what ``Retry-After`` asks for."""
_BUSY = (429, 500, 502, 503, 504)
_MAX_ERROR_BYTES = 65_536
_CODE = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")
_EXPECTED_REGION = re.compile(rb"<Region>([a-z0-9-]{1,64})</Region>")


@dataclass(frozen=True, slots=True)
class BucketModel:
    """The objects below ``prefix`` of a bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class BucketObject:
    """One of them, as it was listed."""

    key: str
    size_bytes: int
    etag: str

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.key.rpartition("/")[2]


class BucketStore:
    """Reads a model's bucket. Not thread-safe."""

    def __init__(self, model: BucketModel) -> None:
        self.model = model
        self._has_answered = False
        self._opener = urllib.request.build_opener(_NoRedirection)
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

    def wanted(self) -> list[BucketObject]:
        """Objects of a model, by key."""
        return [item for item in self._listed() if _WANTED.fullmatch(self._relative(item.key))]

    def download(self, item: BucketObject, partial: Path) -> str | None:
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
            # One byte more than there is tells that the store has another object.
            left = item.size_bytes + 1 - (start if is_rest else 0)
            with partial.open("ab" if is_rest else "wb") as file:
                while chunk := answer.read(min(_CHUNK_BYTES, left)):
                    file.write(chunk)
                    left -= len(chunk)
            whole = answer.headers.get("x-amz-checksum-sha256", "")
        if partial.stat().st_size < item.size_bytes:
            raise OSError(f"{partial.stat().st_size} of {item.size_bytes} bytes")
        return _hex(whole)

    def _relative(self, key: str) -> str:
        return key.removeprefix(self.model.prefix).lstrip("/")

    def _listed(self) -> Iterator[BucketObject]:
        prefix = f"{self.model.prefix}/" if self.model.prefix else ""
        query = {"list-type": "2", "prefix": prefix, "delimiter": "/"}
        for _ in range(_MAX_PAGES):
            objects, token = self._page(query)
            yield from objects
            if not token:
                return
            query["continuation-token"] = token
        raise ModelLoadError(
            f"{self.model} has more than {_MAX_PAGES} pages of objects right below it; give a "
            "prefix that holds nothing but the model."
        )

    def _page(self, query: Mapping[str, str]) -> tuple[list[BucketObject], str | None]:
        path = "/" if self._root.count("/") == 2 else ""
        try:
            with self._get(path, query, {}) as answer:
                body = answer.read(_MAX_PAGE_BYTES + 1)
            if len(body) > _MAX_PAGE_BYTES:
                raise ValueError(f"a page of more than {_MAX_PAGE_BYTES} bytes")
            return _parse_page(body)
        except (OSError, ValueError, http.client.HTTPException, ElementTree.ParseError) as exc:
            raise SourceUnreachableError(
                f"{self.model} cannot be listed: {self._root} answered amiss ({exc}); try again."
            ) from exc

    def _get(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        """An answer. A store that is busy is asked again, one that cannot be reached only if it
        could before: the first time, an address is more probably wrong than a network."""
        pauses_s = iter(PAUSES_S)
        while True:
            try:
                answer = self._open(path, query, headers)
            except urllib.error.HTTPError as exc:
                pause_s = next(pauses_s, None) if exc.code in _BUSY else None
                if pause_s is None:
                    raise self._refused(exc) from exc
                time.sleep(max(pause_s, _asked_pause_s(exc)))
            except (OSError, http.client.HTTPException) as exc:
                pause_s = next(pauses_s, None) if self._has_answered else None
                if pause_s is None:
                    raise SourceUnreachableError(
                        f"{self.model} cannot be fetched: {self._root} cannot be reached "
                        f"({getattr(exc, 'reason', exc)}); check the network and AWS_ENDPOINT_URL."
                    ) from exc
                time.sleep(pause_s)
            else:
                self._has_answered = True
                return answer

    def _open(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        url = self._root + path
        sent = dict(headers)
        if self._credentials is not None:
            now = datetime.now(UTC)
            sent = signed_headers(url, query, headers, self._credentials, self._region, now)
        full = f"{url}?{canonical_query(query)}" if query else url
        request = urllib.request.Request(full, headers=sent)
        answer: http.client.HTTPResponse = self._opener.open(request, timeout=_TIMEOUT_S)
        return answer

    def _refused(self, error: urllib.error.HTTPError) -> ModelLoadError:
        """The store's word for what is wrong, and what can be done about it."""
        try:
            body = error.read(_MAX_ERROR_BYTES)
        except (OSError, http.client.HTTPException):
            body = b""
        found = _CODE.search(body)
        code = found[1].decode() if found else ""
        kind = _KINDS.get(error.code, SourceUnreachableError)
        hint = _HINTS_OF_CODES.get(code) or _HINTS.get(error.code, "try again later")
        region = error.headers.get("x-amz-bucket-region", "")
        expected = _EXPECTED_REGION.search(body)
        if not re.fullmatch(r"[a-z0-9-]{1,64}", region):
            region = expected[1].decode() if expected else ""
        if region and region != self._region and kind is ModelLoadError:
            hint = f"the bucket is in {region}, and AWS_REGION says {self._region}"
        told = f"{error.code} ({code})" if code else str(error.code)
        return kind(f"{self._root} answered {told} for {self.model}; {hint}.")


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """A request bears a signature, and with temporary keys their token, for the store alone."""

    def redirect_request(self, *args: object) -> None:
        return None


def _parse_page(body: bytes) -> tuple[list[BucketObject], str | None]:
    """Objects of a listing, and how the next page is asked for. Raises ValueError or ParseError."""
    page = ElementTree.fromstring(body)
    space = page.tag.partition("}")[0] + "}" if page.tag.startswith("{") else ""
    objects = [_parse_object(entry, space) for entry in page.iter(f"{space}Contents")]
    return objects, page.findtext(f"{space}NextContinuationToken")


def _parse_object(entry: ElementTree.Element, space: str) -> BucketObject:
    key, size, etag = (entry.findtext(f"{space}{name}") or "" for name in ("Key", "Size", "ETag"))
    etag = etag.strip('"')
    if not _SIZE.fullmatch(size):
        raise ValueError(f"the size of {key!r:.200} is {size!r:.80}")
    if not _ETAG.fullmatch(etag):
        raise ValueError(f"the ETag of {key!r:.200} is {etag!r:.80}")
    return BucketObject(key, int(size), etag)


_ELSEWHERE = "it leads elsewhere, where no key is sent; set AWS_ENDPOINT_URL to the store itself"
_KINDS = {
    **dict.fromkeys((301, 302, 303, 307, 308), ModelLoadError),
    400: ModelLoadError,
    401: SourceForbiddenError,
    403: SourceForbiddenError,
    404: ModelLoadError,
}
_HINTS = {
    **dict.fromkeys((302, 303, 307, 308), _ELSEWHERE),
    301: "set AWS_REGION to the bucket's region",
    400: "check AWS_REGION and the key",
    401: "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    403: "the key (or nobody, without one) may not read it; check AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY and the bucket's policy",
    404: "there is no such bucket or object; check the URI",
    412: "an object changed meanwhile; try again",
}
_HINTS_OF_CODES = {
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "the store does not know this AWS_ACCESS_KEY_ID",
    "ExpiredToken": "the temporary key has expired; get another",
    "InvalidToken": "check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "NoSuchBucket": "there is no such bucket; check the URI",
    "NoSuchKey": "the object has gone; check the URI",
}


def _asked_pause_s(error: urllib.error.HTTPError) -> float:
    """What the store asks for in seconds; a date is not understood, and asks for nothing."""
    asked = error.headers.get("Retry-After", "")
    return min(float(asked), _MOST_PAUSE_S) if re.fullmatch(r"\d{1,9}", asked) else 0.0


def _hex(checksum: str) -> str | None:
    """Base64 as hex; None for none, and for the composite checksum of a multipart upload."""
    try:
        raw = base64.b64decode(checksum, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw.hex() if len(raw) == hashlib.sha256().digest_size else None

"""An object store on this machine that speaks enough of S3, and checks every signature.

It honours ``Range`` and ``If-Match``, lists in pages of two, refuses with S3's documents, and can
break off in the middle, be away for a while after it, be too busy to answer, send elsewhere, list
anything and not end.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from octavo.loading.bucket_signature import Credentials, signed_headers

KEY = Credentials("AKIDEXAMPLE", "secret/key")
REGION = "eu-central-1"


@dataclass
class FakeBucket:
    """What the bucket holds, and what was asked of it."""

    objects: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    downloads: Counter[str] = field(default_factory=Counter)
    """Bytes of each object that were sent."""
    num_requests: int = 0
    breaks_after: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    """Objects that are sent with another last byte than they have."""
    num_busy: int = 0
    """Requests that are answered 503, from now on."""
    num_lost: int = 0
    """Connections that are closed without an answer, from the next broken download on."""
    has_broken: bool = False
    """Whether a download has broken off."""
    leads_to: str = ""
    """Where all requests are sent, instead of being answered."""
    listing: bytes = b""
    """Instead of what there is."""
    endless: set[str] = field(default_factory=set)
    """Objects that are followed by zeros until nobody takes them."""
    is_multipart: bool = False
    """ETags are no MD5; SHA-256 checksums are sent instead."""

    def etag(self, key: str) -> str:
        md5 = hashlib.md5(self.objects[key]).hexdigest()
        return f"{md5}-2" if self.is_multipart else md5


@contextmanager
def run_fake_bucket(name: str) -> Iterator[FakeBucket]:
    """A bucket of that name on a free port of the loopback."""
    bucket = FakeBucket()

    class Handler(_Handler):
        pass

    Handler.bucket, Handler.name = bucket, name
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    bucket: FakeBucket
    name: str

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        given = {name.lower(): value for name, value in self.headers.items()}
        root = f"/{self.name}"
        self.bucket.num_requests += 1
        if self.bucket.has_broken and self.bucket.num_lost:
            self.bucket.num_lost -= 1
            self.close_connection = True
        elif self.bucket.leads_to:
            self.send_response(307)
            self.send_header("Location", self.bucket.leads_to)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.bucket.num_busy:
            self.bucket.num_busy -= 1
            self._refuse(503, "SlowDown")
        elif (reason := self._objection(given, parts.path, query)) is not None:
            self._refuse(403, reason)
        elif parts.path.split("/")[1] != self.name:
            self._refuse(404, "NoSuchBucket")
        elif "list-type" in query:
            self._list(query)
        else:
            self._send(unquote(parts.path.removeprefix(root + "/")))

    def _refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _objection(self, given: dict[str, str], path: str, query: dict[str, str]) -> str | None:
        """Why a request is not let in; None for one that is."""
        if "authorization" not in given:
            return "AccessDenied"
        if f"Credential={KEY.access_key_id}/" not in given["authorization"]:
            return "InvalidAccessKeyId"
        moment = datetime.strptime(given["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if abs((datetime.now(UTC) - moment).total_seconds()) > 900:
            return "RequestTimeTooSkewed"
        return None if self._is_signed(given, path, query) else "SignatureDoesNotMatch"

    def _is_signed(self, given: dict[str, str], path: str, query: dict[str, str]) -> bool:
        authorization = given.get("authorization", "")
        names = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
        moment = datetime.strptime(given.get("x-amz-date", ""), "%Y%m%dT%H%M%SZ")
        added = {"host", "x-amz-content-sha256", "x-amz-date"}
        headers = {name: given[name] for name in names if name and name not in added}
        url = f"http://{given['host']}{path}"
        expected = signed_headers(url, query, headers, KEY, REGION, moment.replace(tzinfo=UTC))
        return expected["Authorization"] == authorization

    def _list(self, query: dict[str, str]) -> None:
        prefix, start = query["prefix"], int(query.get("continuation-token", "0"))
        keys = sorted(
            key
            for key in self.bucket.objects
            if key.startswith(prefix) and "/" not in key.removeprefix(prefix)
        )
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.bucket.objects[key])}</Size>"
            f"<ETag>&quot;{self.bucket.etag(key)}&quot;</ETag></Contents>"
            for key in keys[start : start + 2]
        )
        more = start + 2 < len(keys)
        token = f"<NextContinuationToken>{start + 2}</NextContinuationToken>" if more else ""
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        body = f'<ListBucketResult xmlns="{space}">{entries}{token}</ListBucketResult>'.encode()
        body = self.bucket.listing or body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, key: str) -> None:
        content = self.bucket.objects.get(key)
        if content is None:
            self._refuse(404, "NoSuchKey")
            return
        etag = f'"{self.bucket.etag(key)}"'
        if self.headers.get("If-Match", etag) != etag:
            self._refuse(412, "PreconditionFailed")
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start >= max(1, len(content)):
            self._refuse(416, "InvalidRange")
            return
        rest = content[start:]
        if key in self.bucket.damaged:
            rest = rest[:-1] + bytes([rest[-1] ^ 1])
        self.send_response(206 if start else 200)
        if key not in self.bucket.endless:
            self.send_header("Content-Length", str(len(rest)))
        if self.bucket.is_multipart:
            digest = hashlib.sha256(content).digest()
            self.send_header("x-amz-checksum-sha256", base64.b64encode(digest).decode())
        self.end_headers()
        self.bucket.has_broken |= key in self.bucket.breaks_after
        rest = rest[: self.bucket.breaks_after.pop(key, len(rest))]
        self.bucket.downloads[key] += len(rest)
        self.wfile.write(rest)
        with suppress(ConnectionError):
            while key in self.bucket.endless:
                self.wfile.write(bytes(1 << 16))

    def log_message(self, format: str, *args: object) -> None:
        pass

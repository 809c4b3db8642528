"""A Hugging Face hub on this machine: the few routes a download uses.

Repositories are dictionaries of files. As on the real one, large files are a redirect to a store
of another origin, which wants no token; listings come in pages; blobs are named by Git's hash or
SHA-256; refusals have a code and a message. Source: huggingface.co/docs/hub (api, rate-limits), and
what ``huggingface_hub`` 2.4 reads.

The server counts what is asked of it, honours ``Range``, and can break off in the middle of a file.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_PAGE = 4
"""Files in a page of a listing; the real hub's have a thousand."""
_API = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class FakeRepository:
    """A model. ``token``: what may read it. ``is_gated``: anyone may list the files and nobody may
    read them. ``is_disabled``: the hub has taken it down."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None
    is_gated: bool = False
    is_disabled: bool = False
    status: int | None = None
    """Answer everything with this."""

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class FakeHub:
    """What the hub holds, and what was asked of it."""

    repositories: dict[str, FakeRepository] = field(default_factory=dict)
    url: str = ""
    downloads: Counter[str] = field(default_factory=Counter)
    """Bytes of each file that were sent."""
    breaks_after: dict[str, int] = field(default_factory=dict)
    """File → bytes after which its next download breaks off, once."""
    always_break: set[str] = field(default_factory=set)
    """Files whose downloads break off before the first byte, every time."""
    num_limited: int = 0
    """Requests that are answered 429, from now on."""
    store_url: str = ""
    """Of the store for large files."""


@contextmanager
def run_fake_hub() -> Iterator[FakeHub]:
    """A hub on a free port of the loopback."""
    hub = FakeHub()

    class Hub(_Handler):
        pass

    class Store(_StoreHandler):
        pass

    Hub.hub = Store.hub = hub
    with _serving(Hub) as hub.url, _serving(Store) as hub.store_url:
        yield hub


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def _answer(self, with_body: bool) -> None:
        if self.hub.num_limited:
            self.hub.num_limited -= 1
            limits = {"RateLimit": '"api";r=0;t=7', "RateLimit-Policy": '"api";q=500;w=300'}
            self._fail(429, "", limits)
            return
        path = unquote(urlsplit(self.path).path)
        api, tree, file = (pattern.fullmatch(path) for pattern in (_API, _TREE, _FILE))
        match = api or tree or file
        if match is None:
            self._fail(404, "EntryNotFound")
            return
        repository = self.hub.repositories.get(match[1])
        revision = match[2] or "main"
        if not self._is_allowed(repository, is_file=file is not None):
            return
        assert repository is not None
        if revision not in (*repository.revisions, repository.commit):
            self._fail(404, "RevisionNotFound")
        elif api:
            self._send_info(match[1], repository, with_body)
        elif tree:
            self._send_tree(path, repository, with_body)
        else:
            self._send_file(match[3], repository, with_body)

    def _is_allowed(self, repository: FakeRepository | None, *, is_file: bool) -> bool:
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if sent == "expired":
            self._fail(401, "", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository is None:
            # The hub does not tell strangers what exists.
            self._fail(401 if not sent else 404, "RepoNotFound")
        elif repository.status is not None:
            self._fail(repository.status, "")
        elif repository.is_disabled:
            self._fail(403, "", {"X-Error-Message": "Access to this resource is disabled."})
        elif repository.is_gated and is_file:
            self._fail(403 if sent else 401, "GatedRepo")
        elif repository.token not in (None, sent):
            self._fail(401, "RepoNotFound")
        else:
            return True
        return False

    def _send_info(self, name: str, repository: FakeRepository, with_body: bool) -> None:
        siblings = [{"rfilename": file} for file in repository.files]
        info: dict[str, object] = {
            "id": name,
            "modelId": name,
            "sha": repository.commit,
            "siblings": siblings,
        }
        info |= {"private": False, "tags": [], "downloads": 0, "likes": 0}
        self._send_json(info, with_body)

    def _send_tree(self, path: str, repository: FakeRepository, with_body: bool) -> None:
        start = int(dict(parse_qsl(urlsplit(self.path).query)).get("cursor", "0"))
        entries = [_entry(name, content) for name, content in repository.files.items()]
        headers = {}
        if start + _PAGE < len(entries):
            more = f"{self.hub.url}{quote(path)}?recursive=True&cursor={start + _PAGE}"
            headers["Link"] = f'<{more}>; rel="next"'
        self._send_json(entries[start : start + _PAGE], with_body, headers)

    def _send_json(
        self, value: object, with_body: bool, headers: dict[str, str] | None = None
    ) -> None:
        body = json.dumps(value).encode()
        told = {"Content-Type": "application/json", **(headers or {})}
        self._send(200, body, told, with_body)

    def _send_file(self, name: str, repository: FakeRepository, with_body: bool) -> None:
        content = repository.files.get(name)
        if content is None:
            self._fail(404, "EntryNotFound", {"X-Repo-Commit": repository.commit})
            return
        headers = {"X-Repo-Commit": repository.commit}
        if not _is_large(name):
            headers["ETag"] = f'"{_git_hash(content)}"'
            self._send_content(name, content, headers, with_body)
            return
        sha256 = hashlib.sha256(content).hexdigest()
        headers["X-Linked-ETag"] = f'"{sha256}"'
        headers["X-Linked-Size"] = str(len(content))
        headers["Location"] = f"{self.hub.store_url}/{quote(name)}?X-Amz-Signature={sha256}"
        self._send(302, b"Found. Redirecting", headers, with_body)

    def _send_content(
        self, name: str, content: bytes, headers: dict[str, str], with_body: bool
    ) -> None:
        headers = headers | {"Accept-Ranges": "bytes"}
        status, start = 200, 0
        wanted = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", ""))
        if wanted and with_body:
            status, start = 206, int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, content[start:], headers, with_body, name)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        with_body: bool,
        name: str | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body:
            return
        if name is not None:
            limit = self.hub.breaks_after.pop(name, None)
            if name in self.hub.always_break:
                limit = 0
            if limit is not None:
                body = body[:limit]
                self.close_connection = True
            self.hub.downloads[name] += len(body)
        self.wfile.write(body)

    def _fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, b"{}", {**named, **(headers or {})}, self.command == "GET")


class _StoreHandler(_Handler):
    """Large files by URLs that are signed; a token beside the signature is one credential too
    many, as for S3."""

    def _answer(self, with_body: bool) -> None:
        parts = urlsplit(self.path)
        sha256 = dict(parse_qsl(parts.query)).get("X-Amz-Signature")
        name = unquote(parts.path)[1:]
        contents = [each.files.get(name) for each in self.hub.repositories.values()]
        for content in contents:
            if content is not None and hashlib.sha256(content).hexdigest() == sha256:
                if "Authorization" in self.headers:
                    self._fail(400, "")
                else:
                    self._send_content(name, content, {"ETag": '"of-the-store"'}, with_body)
                return
        self._fail(403, "")


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf", ".bin"))


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, object]:
    """Of a listing."""
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content)}
    entry["oid"] = _git_hash(content)
    if _is_large(name):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry

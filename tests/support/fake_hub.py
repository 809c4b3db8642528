"""A Hugging Face hub on this machine: the few routes a download uses.

Repositories are dictionaries of files. The server counts what is asked of it, honours ``Range``,
and can break off in the middle of a file.
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
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class FakeRepository:
    """A model. ``token``: what may read it. ``is_gated``: tokens do not help."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None
    is_gated: bool = False
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


@contextmanager
def run_fake_hub() -> Iterator[FakeHub]:
    """A hub on a free port of the loopback."""
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
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
        path = unquote(urlsplit(self.path).path)
        api, tree, file = (pattern.fullmatch(path) for pattern in (_API, _TREE, _FILE))
        match = api or tree or file
        if match is None:
            self._fail(404, "EntryNotFound")
            return
        repository = self.hub.repositories.get(match[1])
        revision = match[2] or "main"
        if not self._is_allowed(repository):
            return
        assert repository is not None
        if revision not in (*repository.revisions, repository.commit):
            self._fail(404, "RevisionNotFound")
        elif api:
            self._send_info(match[1], repository, with_body)
        elif tree:
            self._send_tree(repository, with_body)
        else:
            self._send_file(match[3], repository, with_body)

    def _is_allowed(self, repository: FakeRepository | None) -> bool:
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is None:
            # The hub does not tell strangers what exists.
            self._fail(401 if not sent else 404, "RepoNotFound")
        elif repository.status is not None:
            self._fail(repository.status, "")
        elif repository.is_gated:
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

    def _send_tree(self, repository: FakeRepository, with_body: bool) -> None:
        entries = [
            {
                "type": "file",
                "path": name,
                "size": len(content),
                "oid": hashlib.sha1(content).hexdigest(),
            }
            for name, content in repository.files.items()
        ]
        self._send_json(entries, with_body)

    def _send_json(self, value: object, with_body: bool) -> None:
        body = json.dumps(value).encode()
        self._send(200, body, {"Content-Type": "application/json"}, with_body)

    def _send_file(self, name: str, repository: FakeRepository, with_body: bool) -> None:
        content = repository.files.get(name)
        if content is None:
            self._fail(404, "EntryNotFound", {"X-Repo-Commit": repository.commit})
            return
        headers = {
            "X-Repo-Commit": repository.commit,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
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

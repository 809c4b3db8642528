"""API keys: who has one, what it may do, and files of them that change while we run.

One key a line, options after it, ``#`` begins a comment::

    sk-3b1f...                                       # named after its hash
    sk-77aa... name=team-a max-running=16 max-queued=200 tokens-per-minute=200000
    sha256:9f86d08...  name=team-b priority=5        # the file need not hold the key itself
    sk-0c4d... name=ops admin

Keys are compared as hashes, all of them every time. Knows lines and files; knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigError
from octavo.request import Tenant
from octavo.server.requests import RequestRecord
from octavo.server.token_budget import TokenBudget

_log = logging.getLogger(__name__)
MAX_KEY_FILE_BYTES = 1024 * 1024
MAX_KEYS = 10_000
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NUMBERS = ("max-running", "max-queued", "tokens-per-minute", "priority")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. Several of one name are one tenant, e.g. while a key is being replaced."""

    name: str
    digest: bytes
    is_admin: bool = False
    max_running: int | None = None
    """Requests (choices) that run at once; more of them wait."""
    max_queued: int | None = None
    """Requests that wait beyond those that may run; the next one is refused."""
    tokens_per_minute: int | None = None
    """Of prompts and answers together."""
    priority: int | None = None
    """What its requests run with, unless they ask for a worse one; a better one is refused."""

    @property
    def tenant(self) -> Tenant:
        """As the engine knows it."""
        return Tenant(self.name, self.max_running, self.max_queued)


NO_KEY = ApiKey("", b"")
"""Whoever asks a server that has no keys."""


class KeyRing:
    """All accepted keys. ``lines`` are fixed; ``paths`` are read again when they change."""

    def __init__(
        self, lines: Sequence[str] = (), admin_lines: Sequence[str] = (), paths: Sequence[str] = ()
    ) -> None:
        """Raises ConfigError for a file that cannot be read, or a line that is no key."""
        self._fixed = [parse_key(line, "the command line or environment") for line in lines]
        self._fixed += [
            parse_key(f"{line} admin", "the command line or environment") for line in admin_lines
        ]
        self._paths = [Path(path) for path in paths]
        self._signature = self._sign()
        self._keys = list(self._fixed)
        for path in self._paths:
            from_file = _keys_in(path)
            if not from_file:
                raise ConfigError(f"--api-key-file {path} holds no key; write one a line.")
            self._keys += from_file
        self._budgets: dict[str, TokenBudget] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no key is asked for: none was ever configured."""
        return not self._fixed and not self._paths

    @property
    def has_admin(self) -> bool:
        """Whether some key may do what administrators do."""
        return any(key.is_admin for key in self._keys)

    @property
    def names(self) -> list[str]:
        """Of all keys, each once."""
        return list(dict.fromkeys(key.name for key in self._keys))

    def find(self, token: bytes) -> ApiKey | None:
        """The key, compared with every one there is in constant time."""
        digest = hashlib.sha256(token).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    def wait_s(self, key: ApiKey, record: RequestRecord) -> float:
        """Seconds a request has to wait for its key's tokens; 0: it may go on."""
        if key.tokens_per_minute is None:
            return 0.0
        budget, now_s = self._budgets.get(key.name), time.monotonic()
        if budget is None or budget.per_minute != key.tokens_per_minute:
            budget = self._budgets[key.name] = TokenBudget(key.tokens_per_minute, now_s)
        return budget.enter(record, now_s)

    def reload_if_changed(self) -> None:
        """Read the files again if they changed. What cannot be read or parsed changes nothing but
        the log; a file that is gone or empty holds no keys."""
        signature = self._sign()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            from_files = [key for path in self._paths if path.exists() for key in _keys_in(path)]
        except ConfigError as error:
            _log.error("API keys are not read again, the old ones stay: %s", error)
            return
        self._keys = self._fixed + from_files
        _log.info("API keys were read again: %d keys of %d names", len(self._keys), len(self.names))

    def _sign(self) -> list[tuple[str, int, int, int]]:
        """Changes whenever a file does, also by the swap of a folder as Kubernetes does it."""
        signature = []
        for path in self._paths:
            try:
                files = _visible_files(path) if path.is_dir() else [path]
                for file in files:
                    about = file.stat()
                    signature.append((str(file), about.st_mtime_ns, about.st_size, about.st_ino))
            except OSError as error:
                signature.append((str(path), error.errno or 0, -1, -1))
        return signature


class AdminRing:
    """The keys of the admin port: administrators' of the server's ring, and those whose hashes
    are given, which open nothing else. A client's key is found here too, and is no admin's."""

    def __init__(self, ring: KeyRing, hashes: Sequence[str]) -> None:
        self._ring = ring
        lines = [f"sha256:{digest} name=operator" for digest in hashes]
        self._own = KeyRing(admin_lines=lines)

    @property
    def is_empty(self) -> bool:
        """Whether no key is asked for."""
        return not self.has_admin

    @property
    def has_admin(self) -> bool:
        """Whether some key may do what administrators do."""
        return self._own.has_admin or self._ring.has_admin

    def find(self, token: bytes) -> ApiKey | None:
        """The key, or None for one that is not known."""
        return self._own.find(token) or self._ring.find(token)

    def wait_s(self, key: ApiKey, record: RequestRecord) -> float:
        """See :meth:`KeyRing.wait_s`."""
        return self._ring.wait_s(key, record)


def parse_key(line: str, origin: str, default_name: str | None = None) -> ApiKey:
    """One line; its errors never repeat the key."""
    key, *options = line.split()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"An API key in {origin} holds a character that HTTP headers cannot carry; use "
            "printable ASCII characters."
        )
    hashed = _HASHED.fullmatch(key)
    digest = bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(key.encode()).digest()
    # Of a key as long as keys are, eight digits of its hash tell nothing.
    name = default_name or f"key-{digest.hex()[:8]}"
    is_admin, numbers = False, dict[str, int]()
    for option in options:
        word, _, value = option.partition("=")
        if option == "admin":
            is_admin = True
        elif word == "name" and _NAME.fullmatch(value):
            name = value
        elif word in _NUMBERS and value.lstrip("-").isdigit() and len(value) < 11:
            numbers[word] = int(value)
        else:
            raise ConfigError(
                f"An API key in {origin} has the option {option[:64]!r}; known are admin, "
                "name=NAME, max-running=N, max-queued=N, tokens-per-minute=N and priority=N."
            )
    for word, number in numbers.items():
        if word != "priority" and number < 1:
            raise ConfigError(f"{word} of an API key in {origin} is {number}; the least is 1.")
    return ApiKey(
        name,
        digest,
        is_admin,
        numbers.get("max-running"),
        numbers.get("max-queued"),
        numbers.get("tokens-per-minute"),
        numbers.get("priority"),
    )


def _keys_in(path: Path) -> list[ApiKey]:
    """Keys of one file, or of all files in a folder (as a Kubernetes Secret is mounted), there
    named after their files."""
    try:
        if path.is_dir():
            keys = [key for file in _visible_files(path) for key in _keys_of_file(file, file.name)]
        else:
            keys = _keys_of_file(path, None)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"--api-key-file {path} cannot be read: {reason}.") from None
    if len(keys) > MAX_KEYS:
        raise ConfigError(
            f"--api-key-file {path} holds {len(keys)} keys; at most {MAX_KEYS} are taken."
        )
    return keys


def _visible_files(folder: Path) -> list[Path]:
    """Without the dot-files among which Kubernetes keeps the versions of a Secret."""
    return sorted(file for file in folder.iterdir() if file.name[0] != "." and file.is_file())


def _keys_of_file(path: Path, default_name: str | None) -> list[ApiKey]:
    if path.stat().st_size > MAX_KEY_FILE_BYTES:
        raise ConfigError(f"--api-key-file {path} is larger than 1 MiB; list keys only.")
    lines = (line.partition(" #")[0].strip() for line in path.read_text("utf-8").splitlines())
    if default_name is not None and not _NAME.fullmatch(default_name):
        default_name = None
    return [
        parse_key(line, str(path), default_name)
        for line in lines
        if line and not line.startswith("#")
    ]

"""Who may ask: a bearer token on every route but health and metrics, an admin's on some.

Deny by default: a route is open only when it is named here, and one is an admin's by being
included with :func:`admin_only`. Where there is no admin key, those answer this machine only.
"""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.errors import ApiError
from octavo.server.keys import NO_KEY, ApiKey
from octavo.server.requests import RequestRecord

OPEN_PATHS = frozenset(
    {
        "/health",
        "/health/live",
        "/health/load",
        "/health/loaded",
        "/health/ready",
        "/health/startup",
        "/ping",
        "/metrics",
    }
)
"""What a probe or a scraper, which has no key, must be able to ask (vLLM's are open too). They
tell numbers and the model's name, nothing of what was asked."""
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"origin"})
"""Headers that say that somebody else asks through this machine."""


class Keys(Protocol):
    """Who is known at a door: :class:`octavo.server.keys.KeyRing`, or the admin port's."""

    @property
    def is_empty(self) -> bool: ...

    @property
    def has_admin(self) -> bool: ...

    def find(self, token: bytes) -> ApiKey | None: ...

    def wait_s(self, key: ApiKey, record: RequestRecord) -> float: ...


class ApiKeyAuth:
    """Refuses with 401 what brings none of the keys; with no keys configured lets all through."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._identify(scope)
            except ApiError as refusal:
                if "octavo.record" in scope:
                    scope["octavo.record"].code = refusal.code
                await refusal.to_response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _identify(self, scope: Scope) -> None:
        """Note who asks, or raise ApiError."""
        key = NO_KEY
        if not self._keys.is_empty and scope["path"] not in OPEN_PATHS:
            key = self._key(scope)
        scope["octavo.key"] = key
        record = scope.get("octavo.record")
        if record is None:
            return
        record.key = key.name
        wait_s = self._keys.wait_s(key, record)
        if wait_s > 0:
            raise ApiError(
                429,
                f"The API key {key.name!r} has used its {key.tokens_per_minute} tokens a minute; "
                f"try again in {wait_s:.1f} s.",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
            )

    def _key(self, scope: Scope) -> ApiKey:
        token = _bearer_token(scope)
        if token is None:
            raise _unauthorised("No API key was sent; send the header 'Authorization: Bearer KEY'.")
        key = self._keys.find(token)
        if key is None:
            raise _unauthorised("The API key is not one this server knows; check the key.")
        return key


def key_of(scope: Scope) -> ApiKey:
    """Who asks."""
    key: ApiKey = scope["octavo.key"]
    return key


def admin_only(keys: Keys, *, is_open_port: bool = False) -> Callable[[Request], Awaitable[None]]:
    """A dependency of routes that let only administrators through.

    ``is_open_port``: the port is one that its owner has opened to a network of his choice, so
    that where there is no admin key, everyone who reaches it is one.
    """

    async def check(request: Request) -> None:
        if key_of(request.scope).is_admin:
            return
        if keys.has_admin:
            raise _admins_only(
                "This route takes an admin key only; send one in the Authorization header."
            )
        if not is_open_port:
            _refuse_others(request.scope)

    return check


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    # What listens on :: is told so of clients that came by IPv4.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _refuse_others(scope: Scope) -> None:
    """Raise ApiError for who is not on this machine, or asks for a web page that is not."""
    client, headers = scope.get("client"), scope["headers"]
    remedy = "set OCTAVO_ADMIN_KEY, or start the server with --admin-port."
    if (
        client is None
        or not is_loopback(client[0])
        or any(name in _FORWARDED for name, _ in headers)
    ):
        raise _admins_only(
            f"This route answers this machine only, since the server has no admin key; {remedy}"
        )
    for host in (value.decode("latin-1") for name, value in headers if name == b"host"):
        if not _is_own_name(host):
            raise _admins_only(
                f"The Host header is {host[:100]!r}; this route answers to localhost or an IP "
                f"address only, since the server has no admin key. Use one of these, or {remedy}"
            )


def _is_own_name(host: str) -> bool:
    """Whether a URL with this host means this machine whatever a name server says: a web page may
    have its own name lead here, and then asks as if it were of the same origin."""
    bracketed, _, _ = host[1:].partition("]")
    name = bracketed if host.startswith("[") else host.partition(":")[0].lower()
    if name == "localhost" or name.endswith(".localhost") or name == socket.gethostname().lower():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _admins_only(message: str) -> ApiError:
    return ApiError(403, message, code="admin_key_required")


def _bearer_token(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer" and token.strip():
                return bytes(token.strip())
    return None


def _unauthorised(message: str) -> ApiError:
    return ApiError(
        401, message, code="invalid_api_key", headers={"WWW-Authenticate": 'Bearer realm="octavo"'}
    )

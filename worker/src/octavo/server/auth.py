"""Who may ask: a bearer token on every route but health and metrics.

Deny by default: a route is open only when it is named here. Keys are compared in constant time,
all of them every time.
"""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.errors import ApiError

OPEN_PATHS = frozenset(
    {
        "/health",
        "/health/live",
        "/health/load",
        "/health/ready",
        "/health/startup",
        "/ping",
        "/metrics",
    }
)
"""What a probe or a scraper, which has no key, must be able to ask (vLLM's are open too). They
tell numbers and the model's name, nothing of what was asked."""


class ApiKeyAuth:
    """Refuses with 401 what brings none of the keys; with no keys configured lets all through."""

    def __init__(self, app: ASGIApp, api_keys: tuple[str, ...]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._digests or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refusal.to_response()(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        token = _bearer_token(scope)
        if token is None:
            return _unauthorised(
                "No API key was sent; send the header 'Authorization: Bearer KEY'."
            )
        if not self._is_known(token):
            return _unauthorised("The API key is not one this server knows; check the key.")
        return None

    def _is_known(self, token: bytes) -> bool:
        digest = _digest(token)
        known = False
        for accepted in self._digests:
            known |= hmac.compare_digest(digest, accepted)
        return known


def _bearer_token(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer" and token.strip():
                return bytes(token.strip())
    return None


def _digest(key: bytes) -> bytes:
    """Of one length for all keys, so that a comparison tells nothing of a key's length."""
    return hashlib.sha256(key).digest()


def _unauthorised(message: str) -> ApiError:
    return ApiError(
        401, message, code="invalid_api_key", headers={"WWW-Authenticate": 'Bearer realm="octavo"'}
    )

"""What a request asks of the service itself: how soon, before whom."""

from __future__ import annotations

import math

from starlette.types import Scope

from octavo.server.errors import ApiError, bad_request
from octavo.server.keys import ApiKey
from octavo.server.limits import MAX_TIMEOUT_S


def least_timeout(scope: Scope, in_body: float | None) -> float | None:
    """Seconds from arrival to the last token, queueing included; the shorter where two are given.

    Raises ApiError for an ``X-Request-Timeout`` header that is no such number.
    """
    given = [in_body] if in_body is not None else []
    for name, value in scope["headers"]:
        if name == b"x-request-timeout":
            given.append(_seconds(value.decode("latin-1")))
    return min(given, default=None)


def own_priority(key: ApiKey, asked: int, is_asked: bool) -> int:
    """The priority to run with: the key's own, unless a worse one is asked for."""
    if key.priority is None:
        return asked
    if is_asked and asked < key.priority:
        raise ApiError(
            403,
            f"priority is {asked}; the best that this API key may ask for is {key.priority}. "
            "Ask for that or a larger number, or leave it out.",
            code="priority_not_allowed",
            param="priority",
        )
    return asked if is_asked else key.priority


def deadline_exceeded() -> ApiError:
    """The answer to a request whose time was up before anything was generated."""
    return ApiError(
        504,
        "The request's time was up before its first token; "
        "allow more time or retry when the server is less busy.",
        code="deadline_exceeded",
    )


def cancelled() -> ApiError:
    """The answer to a request that was ended before anything was generated."""
    return ApiError(
        503,
        "The request was cancelled before its first token, by the server's "
        "operator or its shutdown; ask again, maybe another replica.",
        code="request_aborted",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise bad_request(
            f"The X-Request-Timeout header is {text[:40]!r}; it must be a number of seconds above "
            f"0 and at most {MAX_TIMEOUT_S:.0f}.",
            "X-Request-Timeout",
        )
    return seconds

"""Foreign failures turned into ours, once, where they enter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from octavo_operator.errors import (
    ClusterError,
    ConflictError,
    ForbiddenError,
    GoneError,
    NotFoundError,
    RejectedError,
    ThrottledError,
    UnavailableError,
    WebhookError,
)
from octavo_operator.json_text import read_json

DEFAULT_THROTTLE_S: Final = 5.0
DEFAULT_OUTAGE_S: Final = 10.0
MAX_RETRY_AFTER_S: Final = 300.0

_UNTYPED: Final = ("failed to create typed patch object", "failed to convert new object")
"""How an API server says, with HTTP 500, that an applied manifest does not fit its schema.

Seen with Kubernetes 1.36 for a field that does not exist, and for a quantity that is none; trying
again cannot help."""

_WEBHOOK_FAILED: Final = "failed calling webhook"
"""How an API server says, with HTTP 500, that a webhook did not answer it."""


def response_error(
    action: str, status: int, headers: Mapping[str, str], body: bytes
) -> ClusterError:
    """The error for an HTTP answer other than 2xx; `action` says what was tried."""
    message = f"{action}: HTTP {status}: {_explanation(body)}"
    if status == 404:
        return NotFoundError(message)
    if status == 409:
        return ConflictError(message, retry_after_s=1.0)
    if status == 410:
        return GoneError(message)
    if status == 429:
        return ThrottledError(message, retry_after_s=_retry_after_s(headers, DEFAULT_THROTTLE_S))
    if status == 403:
        return ForbiddenError(message, retry_after_s=60.0)
    if status in (400, 405, 413, 415, 422) or any(words in message for words in _UNTYPED):
        return RejectedError(message)
    pause_s = _retry_after_s(headers, DEFAULT_OUTAGE_S)
    if _WEBHOOK_FAILED in message:
        return WebhookError(message, retry_after_s=pause_s)
    return UnavailableError(message, retry_after_s=pause_s)


def network_error(action: str, error: Exception) -> UnavailableError:
    """The error for a timeout or a connection that failed."""
    what = "timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return UnavailableError(f"{action}: {what}", retry_after_s=DEFAULT_OUTAGE_S)


def _retry_after_s(headers: Mapping[str, str], default_s: float) -> float:
    """Only the form in seconds: API servers send no dates."""
    try:
        seconds = float(headers.get("Retry-After", default_s))
    except ValueError:
        return default_s
    return min(max(seconds, 0.1), MAX_RETRY_AFTER_S)


def _explanation(body: bytes) -> str:
    """The sentence in a Status object, or the start of whatever came instead."""
    text = body.decode(errors="replace")
    try:
        status = read_json(text)
    except ValueError:
        return " ".join(text.split())[:300] or "no explanation"
    if isinstance(status, dict) and status.get("message"):
        return str(status["message"])[:800]
    return text[:300]

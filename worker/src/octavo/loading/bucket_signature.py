"""AWS Signature Version 4, for reading from S3 and from what speaks like it.

Source: "Authenticating Requests (AWS Signature Version 4)", Amazon S3 API Reference. Only what a
GET without a body needs.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key; ``session_token`` belongs to temporary ones."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None


def canonical_query(query: Mapping[str, str]) -> str:
    """The query as it is signed, and must be sent."""
    return "&".join(
        f"{quote(key, safe='-_.~')}={quote(value, safe='-_.~')}"
        for key, value in sorted(query.items())
    )


def signed_headers(
    url: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    credentials: Credentials,
    region: str,
    now: datetime,
) -> dict[str, str]:
    """``headers`` and those that sign a GET of ``url`` (its path already quoted, no query)."""
    parts = urlsplit(url)
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    all_headers = {
        **headers,
        "host": parts.netloc,
        "x-amz-content-sha256": _EMPTY_SHA256,
        "x-amz-date": stamp,
    }
    if credentials.session_token:
        all_headers["x-amz-security-token"] = credentials.session_token
    lowered = {name.lower(): " ".join(value.split()) for name, value in all_headers.items()}
    names = ";".join(sorted(lowered))
    request = "\n".join(
        (
            "GET",
            parts.path or "/",
            canonical_query(query),
            *(f"{name}:{lowered[name]}" for name in sorted(lowered)),
            "",
            names,
            _EMPTY_SHA256,
        )
    )
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, digest))
    key = f"AWS4{credentials.secret_access_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    all_headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key_id}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return all_headers

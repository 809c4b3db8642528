"""A stable hash of a manifest: equal content, equal hash, in every process and version."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def manifest_digest(value: Any) -> str:
    """Sixteen hex digits that change when `value` changes."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=8).hexdigest()

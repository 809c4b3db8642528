"""JSON that somebody else may have written, as Python's parser takes it.

That one gives up where objects lie a thousand or more inside each other, and an API server takes
ten thousand: a single resource, in whichever namespace, would end every list and every watch that
it is in. What lies too deeply is left out; no field that is read lies nearly so deep.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

MAX_DEPTH: Final = 200
"""Objects and lists inside each other that are read."""

_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{\]}]', re.DOTALL)


def read_json(text: bytes | str) -> Any:
    """The value, less what lies too deeply in one that is nested so; raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        return read_shallow(text)


def read_shallow(text: bytes | str) -> Any:
    """The value, in which nothing lies too deeply; raises ValueError.

    For short texts, whose value is written again: that gives up a little sooner than reading does.
    """
    raw = text.encode(errors="replace") if isinstance(text, str) else text
    is_flat = raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH
    return json.loads(raw if is_flat else _shallow(raw))


def _shallow(text: bytes) -> bytes:
    """With null for every object and list that is one too many."""
    kept, depth, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        if token[0] in b"[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept += [text[start : token.start()], b"null"]
                start = len(text)  # where what has begun here never ends
        elif token[0] in b"]}":
            if depth == MAX_DEPTH + 1:
                start = token.end()
            depth -= 1
    return b"".join([*kept, text[start:]])

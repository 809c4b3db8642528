"""Durations as Kubernetes users write them ("5m", "1h30m", "90s").

Knows the text form only; what a duration is for is its field's business.
"""

from __future__ import annotations

import re

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration_s(text: str) -> float:
    """Seconds in `text`, e.g. "1h30m" → 5400.0; a bare number is refused: its unit is a guess.

    Raises ValueError with a sentence fragment for the field's error.
    """
    position = 0
    total_s = 0.0
    while position < len(text):
        part = _PART.match(text, position)
        if part is None:
            raise ValueError(f"is {text!r}, which is not a duration")
        total_s += float(part[1]) * _UNITS_S[part[2]]
        position = part.end()
    if not text:
        raise ValueError("is empty, which is not a duration")
    return total_s

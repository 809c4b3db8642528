"""Kubernetes quantities ("80Gi", "500m", "1e3").

Source: the grammar in k8s.io/apimachinery `pkg/api/resource`. Exact: uses decimals, not floats,
so that two spellings of one amount compare equal.
"""

from __future__ import annotations

import re
from decimal import Decimal

_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
}
_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+))"
    r"(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?\d{1,3}))?"
)


def parse_quantity(text: str | int | float) -> Decimal:
    """The amount `text` stands for, in base units, e.g. "1Ki" → 1024, "500m" → 0.5.

    Raises ValueError with a sentence fragment for the field's error.
    """
    if isinstance(text, bool):
        raise ValueError(f"is {text!r}, which is not a quantity")
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(f"is {text!r}, which is not a quantity")
    number = Decimal(match["number"])
    if match["exponent"] is not None:
        return number.scaleb(int(match["exponent"]))
    suffix = match["suffix"] or ""
    if suffix in _BINARY:
        return number * _BINARY[suffix]
    return number * _DECIMAL[suffix]


def is_same_quantity(left: object, right: object) -> bool:
    """Whether two spellings name one amount; False when either is no quantity at all."""
    if not isinstance(left, str | int | float) or not isinstance(right, str | int | float):
        return False
    try:
        return parse_quantity(left) == parse_quantity(right)
    except ValueError:
        return False

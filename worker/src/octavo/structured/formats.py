"""What formats of strings and numbers mean, as patterns and bounds that a grammar can keep.

Sources: RFC 3339 (dates and times), RFC 3986 and RFC 4291 (addresses), RFC 4648 (base64), RFC 9562
(UUIDs), the OpenAPI format registry, and what pydantic and msgspec write. ``duration``, ``email``,
``hostname`` and ``uri`` are the library's own.
"""

from __future__ import annotations

from collections.abc import Mapping

DEFINED_FORMATS = frozenset(
    str.split(
        "date-time date time duration email idn-email hostname idn-hostname ipv4 ipv6 uri "
        "uri-reference iri iri-reference uuid uri-template json-pointer relative-json-pointer regex"
    )
)
"""By draft 2020-12 (Validation, 7.3). What others mean is whatever their author says."""

FREE_FORMATS = frozenset(
    str.split("password binary path file-path directory-path float double half")
)
"""That any text, or any number, is right for."""

_YEAR = r"(?:000[1-9]|00[1-9]\d|0[1-9]\d{2}|[1-9]\d{3})"
_FOURTH = r"(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|(?:\d{{2}}{_FOURTH}|{_FOURTH}00)-02-29)"
)
"""Years 1 to 9999, which languages can hold, as the moments of a leap second cannot be."""
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:[zZ]|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d{2}|[1-9]?\d)"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_HEX = "[0-9a-fA-F]"
_GROUP = f"{_HEX}{{1,4}}"
_LAST = f"(?:{_GROUP}:{_GROUP}|{_IPV4})"
_IPV6 = "|".join(
    [
        f"(?:{_GROUP}:){{6}}{_LAST}",
        f"::(?:{_GROUP}:){{5}}{_LAST}",
        *[
            f"(?:(?:{_GROUP}:){{0,{n}}}{_GROUP})?::(?:{_GROUP}:){{{4 - n}}}{_LAST}"
            for n in range(5)
        ],
        f"(?:(?:{_GROUP}:){{0,5}}{_GROUP})?::{_GROUP}",
        f"(?:(?:{_GROUP}:){{0,6}}{_GROUP})?::",
    ]
)
_IPV4_INTERFACE = rf"{_IPV4}(?:/(?:[12]?\d|3[0-2]))?"
_IPV6_INTERFACE = rf"(?:{_IPV6})(?:/(?:[1-9]?\d|1[01]\d|12[0-8]))?"
_UUID = f"{_HEX}{{8}}-{_HEX}{{4}}-%s{_HEX}{{3}}-%s{_HEX}{{3}}-{_HEX}{{12}}"


def _base64(letters: str) -> str:
    return f"(?:{letters}{{4}})*(?:{letters}{{2}}==|{letters}{{3}}=)?"


BASE64 = f"^(?:{_base64('[A-Za-z0-9+/]')})$"

_TEXTS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[tT]{_TIME}",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": f"{_IPV4}|{_IPV6}",
    "ipv4interface": _IPV4_INTERFACE,
    "ipv6interface": _IPV6_INTERFACE,
    "ipvanyinterface": f"{_IPV4_INTERFACE}|{_IPV6_INTERFACE}",
    "uuid": _UUID % (_HEX, _HEX),
    "guid": _UUID % (_HEX, _HEX),
    **{f"uuid{version}": _UUID % (version, "[89abAB]") for version in range(1, 9)},
    "base64url": _base64("[A-Za-z0-9_-]"),
    "decimal": r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?",
}
_BOUNDS = {
    f"{sign}int{bits}": (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for bits in (8, 16, 32)
    for sign in ("", "u")
} | {"int64": (-(2**63) + 1024, 2**63 - 1)}
"""The library reads a bound just above -2**63 as that, and cannot count to it."""

MEANINGS: Mapping[str, Mapping[str, object]] = {
    **{name: {"pattern": f"^(?:{text})$"} for name, text in _TEXTS.items()},
    **{name: {"pattern": BASE64} for name in ("base64", "byte")},
    **{name: {"minimum": low, "maximum": high} for name, (low, high) in _BOUNDS.items()},
}
"""Keywords that say the same."""

"""What the grammar library says of something that it refuses, in words of who wrote it.

Knows the library's sentences (llguidance 1.9) and what can be done about each. A sentence that is
not known is given as it is, without the grammar that the library quotes below it: a client has
written a schema, and knows nothing of the grammar we make of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_MAX_CHARS = 300
_QUOTED = re.compile(r"\s*\d+ \| |\s*\^+\s*$|\s*$")
"""Lines of the grammar, and the mark below them."""
_PLACE = re.compile(r"(?:at )?(\d+)\(\d+\): ")
_IN_A_SCHEMA = re.compile(r"failed to compile JSON schema: ")
_HEADER_LINES = 1
"""That the server writes above a client's grammar."""
_FORMATS = "date-time, time, date, duration, email, hostname, ipv4, ipv6, uuid or uri"
_IN_A_PATTERN = re.compile(r"regex parse error:\s+(.*?)\s*\n[ ^]*\n?\s*error: (.*)", re.DOTALL)

_Words = Callable[[re.Match[str]], str]
_SENTENCES: tuple[tuple[str, _Words], ...] = (
    (
        r"Unimplemented keys: \[\"uniqueItems\"\]",
        lambda _: (
            "it uses 'uniqueItems', which a grammar can only keep where items are an enum of few "
            "values: leave it out, and check answers for it yourself"
        ),
    ),
    (
        r"Unimplemented keys: \[\"propertyNames\"\]",
        lambda _: (
            "it uses 'propertyNames', which a grammar can only keep where it is an enum of "
            "strings, or a pattern and nothing else: name the properties, or leave it out"
        ),
    ),
    (
        r"Unimplemented keys: \[(.*)\]",
        lambda found: (
            f"it uses {_listed(found[1])}, which no grammar can express: leave it out, "
            "and check answers for it yourself"
        ),
    ),
    (
        r"Invalid type: (.*)",
        lambda found: (
            f"{found[1]!r} is no type: use string, number, integer, boolean, object, array or null"
        ),
    ),
    (r"Unsatisfiable schema: Regex is empty", lambda _: "no text fits pattern, format and length"),
    (
        r"Unsatisfiable schema: anyOf is empty",
        lambda _: "an enum or anyOf is empty: give at least one value",
    ),
    (r"Unsatisfiable schema: (.*)", lambda found: f"no value satisfies it: {found[1]}"),
    (r"Pointer '(.*)' does not exist", lambda found: f"$ref '#{found[1]}' leads nowhere"),
    (
        r"Resource '(.*)' is not present in a registry",
        lambda found: (
            f"$ref {found[1]!r} leads out of the schema, and nothing is fetched: put "
            "what it means into $defs"
        ),
    ),
    (
        r"oneOf constraints are not supported",
        lambda _: (
            "two branches of oneOf may fit one value: use anyOf, or give each branch a "
            "property with a const of its own"
        ),
    ),
    (
        r"patternProperty regexes (.*) are not disjoint",
        lambda found: (
            f"the patternProperties {found[1]} may fit one key: write them so that no key fits both"
        ),
    ),
    (r"Unknown format: (.*)", lambda found: f"format is {found[1]!r}: use {_FORMATS}, or pattern"),
    (
        r"[Ff]ailed to generate regex for (integer|float) range",
        lambda _: "its bounds are too far for a grammar to count: give bounds of up to 15 digits",
    ),
    (r"invalid multiple of", lambda _: "multipleOf must be above 0"),
    (
        r"lookarounds not supported.* in regex (.*)",
        lambda found: f"the pattern {found[1]} looks around itself, as \\b does: write it without",
    ),
    (
        r"schema too large",
        lambda _: "it stands for too many combinations: use fewer alternatives within allOf",
    ),
    (
        r"Current row has (\d+) items; max is (\d+)",
        lambda found: (
            f"at one place {found[1]} things may follow, and at most {found[2]} can be "
            "followed: use fewer properties or alternatives"
        ),
    ),
    (r"NoExtension", lambda _: "no text can satisfy it"),
)


def explain(error: str) -> str:
    """One sentence, without its end, that follows "it cannot be honoured:"."""
    text = _without_quote(error.replace("<non-verbose/>", ""))
    in_pattern = _IN_A_PATTERN.search(text)
    if in_pattern is not None:
        return _short(f"the pattern {in_pattern[1]} cannot be read: {in_pattern[2]}")
    for pattern, words in _SENTENCES:
        found = re.search(pattern, text)
        if found is not None:
            return _short(words(found))
    in_schema = _IN_A_SCHEMA.search(text)
    if in_schema is not None:
        reason = text[in_schema.end() :]
        return _short(reason[:1].lower() + reason[1:])
    place = _PLACE.match(text)
    if place is None:
        return _short(text)
    # Only a grammar of a client's own can be wrong in itself.
    return _short(f"line {int(place[1]) - _HEADER_LINES}: {text[place.end() :]}")


def _without_quote(error: str) -> str:
    lines = error.splitlines()
    while len(lines) > 1 and _QUOTED.match(lines[-1]):
        lines.pop()
    return "\n".join(lines)


def _listed(keywords: str) -> str:
    return keywords.replace('"', "'").replace(", ", " and ")


def _short(text: str) -> str:
    one_line = " ".join(text.split()).rstrip(".")
    return one_line if len(one_line) <= _MAX_CHARS else one_line[: _MAX_CHARS - 3] + "..."

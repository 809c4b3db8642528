"""How large a regular expression becomes when its repetitions are written out.

An automaton is built lazily, but its first state knows the whole expression: nested repetitions
such as ``(a{1000}){1000}`` take seconds and hundreds of megabytes there. The size is estimated
from the text alone, before anything is built.
"""

from __future__ import annotations

import re

from octavo.grammar import cannot_be_honoured

MAX_REGEX_CHARS = 8_192
MAX_EXPANDED = 50_000
_REPEAT = re.compile(r"\{(\d+)(,(\d*))?\}")
_CLASS_OPERATORS = ("&&", "--", "~~")


def check_regex(pattern: str, param: str, place: str = "") -> None:
    """Raise InvalidRequestError for a pattern that is too large, or that means something else in
    the library's notation (Rust's) than in ECMA-262.

    ``param``: the request's field that holds it, and ``place`` where in a schema it is.
    """
    if len(pattern) > MAX_REGEX_CHARS:
        reason = f"a pattern has {len(pattern)} characters; at most {MAX_REGEX_CHARS} are allowed"
        raise cannot_be_honoured(param, reason, place)
    size = expanded_size(pattern)
    if size > MAX_EXPANDED:
        raise cannot_be_honoured(
            param,
            f"a pattern stands for about {size:.0e} characters once its repetitions are written "
            f"out; at most {MAX_EXPANDED} are allowed, so use smaller counts",
            place,
        )
    for inside in _classes(pattern):
        if "[" in inside or any(operator in inside for operator in _CLASS_OPERATORS):
            raise cannot_be_honoured(
                param,
                f"a pattern has the character class [{inside[:60]}]: inside a class write [, &, - "
                "and ~ with a backslash before them",
                place,
            )


def expanded_size(pattern: str) -> int:
    """Characters and classes, each as often as counts in braces repeat it."""
    sizes = [0]
    last = 0
    position = 0
    while position < len(pattern):
        character = pattern[position]
        repeat = _REPEAT.match(pattern, position) if character == "{" else None
        if repeat is not None:
            count = max(int(repeat[1]), int(repeat[3] or 0)) if repeat[2] else int(repeat[1])
            sizes[-1] += last * max(count - 1, 0)
            last *= max(count, 1)
            position = repeat.end()
            continue
        width = 1
        if character == "(":
            sizes.append(0)
            last = 0
        elif character == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif character not in "?*+|^$":
            width = _atom_width(pattern, position)
            last = 1
            sizes[-1] += 1
        position += width
    return sum(sizes)


_NO_TEXT_OF = re.compile(r"\^\(\?!\^?\[([^]\\^]+)\]\*\$\)")


def split_look_ahead(pattern: str) -> tuple[str, str] | None:
    """``^(?=A)B`` as two patterns, ``^(?:A)`` and ``^B``, that a text fits both or not; so too
    ``^(?![abc]*$)B`` (pydantic's numbers): a text with any other character, and ``^B``.

    None for patterns that do not begin so, or of which that is one alternative.
    """
    negated = _NO_TEXT_OF.match(pattern)
    if not pattern.startswith("^(?=") and negated is None:
        return None
    depth, ends, position = 0, [], 1
    while position < len(pattern):
        character = pattern[position]
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == "|":
            return None
        if depth == 0 and character == ")":
            ends.append(position)
        position += _atom_width(pattern, position)
    if not ends or pattern[ends[0] + 1 : ends[0] + 2] in {"?", "*", "+", "{"}:
        return None
    wanted = f"[^{negated[1]}]" if negated else f"^(?:{pattern[4 : ends[0]]})"
    return wanted, "^" + pattern[ends[0] + 1 :]


def _atom_width(pattern: str, position: int) -> int:
    if pattern[position] == "\\":
        return 2
    if pattern[position] == "[":
        return _class_end(pattern, position) - position
    return 1


def _class_end(pattern: str, start: int) -> int:
    """Past the bracket that closes the class begun at ``start``."""
    position = start + 1
    if pattern.startswith("^", position):
        position += 1
    while position < len(pattern):
        if pattern[position] == "\\":
            position += 1
        elif pattern[position] == "]":
            return position + 1
        position += 1
    return len(pattern)


def _classes(pattern: str) -> list[str]:
    """The insides of the character classes, escapes taken out."""
    found = []
    position = 0
    while position < len(pattern):
        width = _atom_width(pattern, position)
        if pattern[position] == "[":
            inside = pattern[position + 1 : position + width - 1]
            found.append(re.sub(r"\\.", "", inside, flags=re.DOTALL))
        position += width
    return found

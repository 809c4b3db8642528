"""Every bound on what a client may send, in one place; each is checked before any work is done.

Bounds of sampling (n, logprobs, biases) are :mod:`octavo.sampling_params`' and are used here.
"""

from __future__ import annotations

from typing import Any

MAX_HEADER_BYTES = 32 * 1024
"""Of all headers and the path together."""
HEADER_TIMEOUT_S = 30.0
"""Until a request's headers are complete."""
BODY_TIMEOUT_S = 120.0
"""Until its body is."""
UNREAD_TIMEOUT_S = 120.0
"""For which a client may take nothing of an answer."""
FREE_BODY_BYTES = 32 * 1024
"""Of each body; those beyond count towards what all bodies may take together."""
NUM_LONGEST_BODIES = 32
"""So many of the longest is what all may take together."""
MAX_PIPELINED = 32
"""Requests that wait on one connection for the answer to the one before."""
MAX_JSON_DEPTH = 64
"""Objects and lists inside each other."""
MAX_JSON_PARTS = 131_072
"""Objects, lists and members of objects: to make two million takes the interpreter a second, in
which nothing else runs. Numbers and texts take a tenth of that, and are not counted."""
MAX_FIELDS = 256
"""Of a body, known or not: each that is not known would be looked at."""
MAX_TIMEOUT_S = 24 * 3600.0
"""Longest deadline that can be asked for."""
_CONTAINERS = (dict, list)
_PART_SIGNS = (b"[", b"{", b":")
_PIECE = 64 * 1024
"""Bytes looked at without letting other threads run."""


def json_parts(text: bytes) -> int:
    """How many objects, lists and members a JSON text holds, before it is decoded.

    Where even with the signs inside of strings there are no more than are allowed, those count too.
    """
    most = _num_signs(text)
    if most <= MAX_JSON_PARTS:
        return most
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    total, is_inside = 0, False
    for start in range(0, len(plain), _PIECE):
        between_quotes = plain[start : start + _PIECE].split(b'"')
        total += _num_signs(b"".join(between_quotes[is_inside::2]))
        is_inside ^= len(between_quotes) % 2 == 0
    return total


def _num_signs(text: bytes) -> int:
    return sum(text.count(sign) for sign in _PART_SIGNS)


def json_depth(document: Any) -> int:
    """How many containers lie inside each other, at most one more than is allowed."""
    depth, level = 0, [document] if isinstance(document, _CONTAINERS) else []
    while level and depth <= MAX_JSON_DEPTH:
        depth += 1
        below: list[Any] = []
        for node in level:
            values = node.values() if type(node) is dict else node
            below += [value for value in values if type(value) in _CONTAINERS]
        level = below
    return depth

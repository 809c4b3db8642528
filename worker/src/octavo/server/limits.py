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
MAX_PIPELINED = 32
"""Requests that wait on one connection for the answer to the one before."""
MAX_JSON_DEPTH = 64
"""Objects and lists inside each other."""
MAX_FIELDS = 256
"""Of a body, known or not: each that is not known would be looked at."""
MAX_TIMEOUT_S = 24 * 3600.0
"""Longest deadline that can be asked for."""
_CONTAINERS = (dict, list)


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

"""Where in a refused schema the fault is, found by asking about smaller ones.

Knows JSON schemas and that some are refused; knows neither the library nor its reasons. All that
the refusal does not need is taken out, halves first (Zeller and Hildebrandt, "Simplifying and
Isolating Failure-Inducing Input", 2002): a sub-schema becomes ``true``, a keyword goes. What is
left at the end is refused for the same reason, and without any of it would not be; where that is
one thing, it is the fault. What was loosened on the way can only have been innocent, because parts
are tried whole before anybody looks into them.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import unquote

from octavo.structured.json_schema import (
    LISTS_OF_SUBSCHEMAS,
    MAPS_OF_SUBSCHEMAS,
    SUBSCHEMAS,
    pointer,
)

MAX_QUESTIONS = 128
"""Halving finds one fault among a thousand properties with about thirty."""

Refuses = Callable[[object], Awaitable[bool]]
"""Whether a schema is refused for the reason that is looked for."""
_OF_OTHER_VALUES = ("properties", "patternProperties", "prefixItems", "items")
"""What lies below speaks of a part of the value that the schema speaks of."""
_Parent = dict[str, Any] | list[Any]


async def find_fault(schema: object, refuses: Refuses) -> str | None:
    """A JSON pointer (RFC 6901, after ``#``) to what the refusal is about.

    None where that is not one part of the schema, or too much would have to be asked.
    """
    if not isinstance(schema, dict):
        return None
    search = _Search(copy.deepcopy(schema), refuses)
    try:
        leaves = await search.reduced("#", search.schema)
    except _TooManyQuestionsError:
        return None
    place = _common(_without_ways(leaves))
    return None if place == "#" else place


class _TooManyQuestionsError(Exception):
    """The search has gone on for long enough."""


class _Search:
    """``schema`` is refused at every moment, and becomes smaller."""

    def __init__(self, schema: dict[str, Any], refuses: Refuses) -> None:
        self.schema = schema
        self._refuses = refuses
        self._num_questions = 0

    async def reduced(self, path: str, schema: dict[str, Any]) -> dict[str, Any]:
        """Reduce a sub-schema that the refusal needs; the values of what is left of it that holds
        nothing smaller, by place."""
        leaves: dict[str, Any] = {}
        for key in await self._needed(schema, list(schema), is_known=True):
            leaves |= await self._inside(pointer(path, key), key, schema[key])
        return leaves or {path: schema}

    async def _inside(self, path: str, key: str, value: Any) -> dict[str, Any]:
        """The same of a keyword's value."""
        if key in SUBSCHEMAS and isinstance(value, dict):
            return await self.reduced(path, value)
        is_map = key in MAPS_OF_SUBSCHEMAS and isinstance(value, dict)
        is_list = key in LISTS_OF_SUBSCHEMAS and isinstance(value, list)
        if not is_map and not is_list:
            return {path: value}
        names = list(value) if is_map else list(range(len(value)))
        leaves: dict[str, Any] = {}
        for name in await self._needed(value, names, replaced=True):
            inner, place = value[name], pointer(path, str(name))
            found = await self.reduced(place, inner) if isinstance(inner, dict) else {place: inner}
            leaves |= found
        return leaves or {path: value}

    async def _needed(
        self,
        parent: Any,
        names: Sequence[Any],
        *,
        replaced: bool = False,
        is_known: bool = False,
    ) -> Sequence[Any]:
        """Those of ``names`` that the refusal needs; the others are taken out of the parent, or
        replaced by ``true``. ``is_known``: without any of them there is no refusal."""
        if not names:
            return ()
        if not is_known:
            before = copy.copy(parent)
            _take(parent, names, replaced=replaced)
            if await self._is_refused():
                return ()
            _put_back(parent, before)
        if len(names) == 1:
            return names
        middle = len(names) // 2
        first = await self._needed(parent, names[:middle], replaced=replaced)
        rest = await self._needed(parent, names[middle:], replaced=replaced, is_known=not first)
        return [*first, *rest]

    async def _is_refused(self) -> bool:
        self._num_questions += 1
        if self._num_questions > MAX_QUESTIONS:
            raise _TooManyQuestionsError
        return await self._refuses(self.schema)


def _take(parent: _Parent, names: Sequence[Any], *, replaced: bool) -> None:
    for name in names:
        if replaced:
            parent[name] = True
        else:
            del parent[name]


def _put_back(parent: Any, before: Any) -> None:
    """Also in the order of before: the library compiles in that order."""
    parent.clear()
    parent.update(before) if isinstance(parent, dict) else parent.extend(before)


def _without_ways(leaves: dict[str, Any]) -> list[str]:
    """The places, but for those that only lead to another of them: a ``$ref``, and a ``type`` or
    ``required`` without which there would be no such property or item."""

    def leads_on(place: str, value: Any) -> bool:
        schema, _, keyword = place.rpartition("/")
        if keyword == "$ref" and isinstance(value, str):
            beginnings = [f"{unquote(value)}/"]
        elif keyword in ("type", "required"):
            beginnings = [f"{schema}/{inner}/" for inner in _OF_OTHER_VALUES]
        else:
            return False
        others = [f"{other}/" for other in leaves if other != place]
        return any(other.startswith(begin) for other in others for begin in beginnings)

    return [place for place, value in leaves.items() if not leads_on(place, value)]


def _common(places: Sequence[str]) -> str:
    """The smallest part that holds all of these."""
    split = [place.split("/") for place in places]
    shared: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared) or "#"

"""What a request's output must follow: as a user asks for it, and as the engine is told.

Plain values that cross the process wall. Knows nothing of how masks are made; what can be said
of them without a library is checked in :mod:`octavo.structured.translate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.errors import InvalidRequestError

_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_MAX_PLACE_CHARS = 200


def cannot_be_honoured(param: str, reason: str, place: str = "") -> InvalidRequestError:
    """The error for a field that says what an output must be: ``reason`` is a sentence without its
    end, ``place`` a pointer into a schema."""
    shown = place if len(place) <= _MAX_PLACE_CHARS else f"{place[:_MAX_PLACE_CHARS]}..."
    where = f" at {shown}" if place else ""
    return InvalidRequestError(f"{param} cannot be honoured{where}: {reason}.", param)


class ReasoningSpan(msgspec.Struct, frozen=True, array_like=True):
    """Thoughts that come before the answer, and are free."""

    begin: str
    """What opens them, e.g. ``<think>``."""
    end: str
    is_open: bool
    """Whether the prompt has opened them already; else the first token decides."""


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly one of ``json``, ``regex``, ``choice``, ``grammar``, ``json_object`` and
    ``structural_tag`` (vLLM's names).

    Raises :class:`octavo.errors.InvalidRequestError` for none, or several.
    """

    json: str | dict[str, Any] | bool | None = None
    """A JSON schema, draft 2020-12."""
    regex: str | None = None
    choice: Sequence[str] | None = None
    """One of these strings."""
    grammar: str | None = None
    """A grammar in Lark's notation, or in GBNF (the EBNF of llama.cpp)."""
    json_object: bool | None = None
    """Any JSON object."""
    structural_tag: str | dict[str, Any] | None = None
    """Free text with pieces that follow a schema each."""
    disable_any_whitespace: bool = False
    """Whether JSON is written without white space."""
    disable_additional_properties: bool = False
    """Whether objects hold only the properties their schema names."""
    whitespace_pattern: str | None = None
    """A regular expression for white space inside JSON."""
    asked_by: str = "structured_outputs"
    """The field of the request that this comes from, which errors name."""
    parts: Sequence[StructuredOutputs] = ()
    """Of a grammar that is made of other fields: each of them, which errors name where they can."""

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if self._is_given(name)]
        if len(given) != 1:
            found = " and ".join(given) if given else "none of them"
            raise InvalidRequestError(
                f"{self.asked_by} takes exactly one of {', '.join(_KINDS)}; it has {found}.",
                self.asked_by,
            )

    @property
    def kind(self) -> str:
        """The name of the field that is given."""
        return next(name for name in _KINDS if self._is_given(name))

    @property
    def param(self) -> str:
        """The field at fault where this cannot be honoured, as exactly as it is known."""
        is_own = self.asked_by == "structured_outputs"
        return f"{self.asked_by}.{self.kind}" if is_own else self.asked_by

    def _is_given(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and not (name == "json_object" and value is False)


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What the engine is told."""

    text: str
    """In llguidance's notation, a variant of Lark's."""
    reasoning: ReasoningSpan | None = None


class Vocabulary(msgspec.Struct, frozen=True, array_like=True):
    """What grammars are matched against."""

    tokens: list[bytes]
    """The bytes of each token id; ids past the end stand for nothing."""
    special_ids: list[int]
    """Tokens that no text contains."""

"""JSON that is still being written: where a value ends, and calls written as objects.

Nothing is parsed that is not complete; what is complete is given on as it was written, so that
what was told before stays true.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Set

_SPACE = " \t\r\n"
_LITERAL_ENDS = _SPACE + ",]}:"


class ValueScanner:
    """Finds the end of one JSON value, however it is cut."""

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = self._is_escaped = self._in_literal = False
        self.has_begun = False

    def scan(self, text: str) -> tuple[int, bool]:
        """How many characters of ``text`` belong to the value, and whether it ends there.

        The value starts with the first character that is no white space. A number ends before
        the character after it.
        """
        for at, character in enumerate(text):
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._in_string = False
                    if not self.depth:
                        return at + 1, True
            elif self._in_literal and character in _LITERAL_ENDS:
                self._in_literal = False
                if not self.depth:
                    return at, True
                self._bracket(character)
                if not self.depth:
                    return at + 1, True
            elif character == '"':
                self._in_string = self.has_begun = True
            elif character in "[{]}":
                self.has_begun = True
                self._bracket(character)
                if self.depth <= 0:
                    return at + 1, True
            elif character not in _SPACE and not (self.depth and character in ",:"):
                self._in_literal = self.has_begun = True
        return len(text), False

    def _bracket(self, character: str) -> None:
        if character in "[{":
            self.depth += 1
        elif character in "]}":
            self.depth -= 1


class CallObject:
    """A call as an object: ``{"name": ..., "arguments": {...}}``, in any order of keys.

    ``keys``: those the arguments may stand under. ``known``: names that are calls; None: any.
    Arguments before the name wait for it. Of a key that stands there twice, the first counts.
    """

    def __init__(self, keys: Set[str], known: Set[str] | None = None) -> None:
        self._keys, self._known = keys, known
        self.name: str | None = None
        """Once known, until it is taken."""
        self.arguments = ""
        """What came since it was last taken."""
        self.has_begun = self.is_done = self.is_broken = False
        self.has_arguments = False
        """Whether they are whole."""
        self._state: Callable[[str], int] = self._open
        self._key = ""
        self._held = ""
        self._waiting = ""
        """Arguments that stand before the name."""
        self._scanner = ValueScanner()

    @property
    def is_over(self) -> bool:
        """Whether it takes no more text."""
        return self.is_done or self.is_broken

    def feed(self, text: str) -> int:
        """How many characters were eaten: all, unless the object is done or broken."""
        at = 0
        while at < len(text) and not (self.is_done or self.is_broken):
            at += self._state(text[at:])
        return at

    def _open(self, text: str) -> int:
        return self._expect(text, "{", self._key_or_end)

    def _key_or_end(self, text: str) -> int:
        if text[0] in _SPACE + ",":
            return 1
        if text[0] == "}":
            self._close()
            return 1
        if text[0] != '"':
            self.is_broken = True
            return 0
        self._scanner, self._held, self._state = ValueScanner(), "", self._in_key
        return 0

    def _in_key(self, text: str) -> int:
        size, is_over = self._scanner.scan(text)
        self._held += text[:size]
        if is_over:
            self._key = _decoded(self._held, "")
            self._state = self._colon
        return size

    def _colon(self, text: str) -> int:
        return self._expect(text, ":", self._before_value)

    def _before_value(self, text: str) -> int:
        if text[0] in _SPACE:
            return 1
        self._scanner, self._held = ValueScanner(), ""
        # Those that are a text are told once it is whole, and null is none.
        is_arguments = self._awaits_arguments and text[0] not in '"n'
        self._state = self._in_arguments if is_arguments else self._in_value
        return 0

    def _in_value(self, text: str) -> int:
        size, is_over = self._scanner.scan(text)
        self._held += text[:size]
        if is_over:
            self._state = self._key_or_end
            if self._key == "name":
                self._take_name(_decoded(self._held, ""))
            elif self._awaits_arguments:
                text_of_object = _decoded(self._held, "")
                self.has_arguments = text_of_object.strip() not in ("", "null")
                if self.has_arguments:
                    self._tell(text_of_object)
        return size

    def _in_arguments(self, text: str) -> int:
        size, is_over = self._scanner.scan(text)
        self._tell(text[:size])
        if is_over:
            self.has_arguments = True
            self._state = self._key_or_end
        return size

    @property
    def _awaits_arguments(self) -> bool:
        return self._key in self._keys and not self.has_arguments

    def _take_name(self, name: str) -> None:
        if self.has_begun:
            return
        if not name or (self._known is not None and name not in self._known):
            self.is_broken = True
            return
        self.has_begun, self.name = True, name
        self.arguments += self._waiting

    def _tell(self, text: str) -> None:
        if self.has_begun:
            self.arguments += text
        else:
            self._waiting += text

    def _close(self) -> None:
        if not self.has_begun:
            self.is_broken = True
            return
        if not self.has_arguments:
            self.arguments += "{}"
        self.is_done = True

    def _expect(self, text: str, wanted: str, state: Callable[[str], int]) -> int:
        if text[0] in _SPACE:
            return 1
        if text[0] != wanted:
            self.is_broken = True
            return 0
        self._state = state
        return 1


def whole_characters(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs: JSON can spell them, UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _decoded(text: str, otherwise: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return otherwise
    return whole_characters(value) if isinstance(value, str) else otherwise

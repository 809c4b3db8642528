"""Calls as Llama 4 and others write them: the whole answer is ``[name(key="value", n=1), ...]``.

An argument is told when it is complete, as JSON. An answer that does not begin as a call of a known
tool is content.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence

from octavo.tools.message import CallText, MessageDelta

_NAME = re.compile(r"[A-Za-z_][\w.]*\s*\(")
_KEY = re.compile(r"\s*([A-Za-z_]\w*)\s*=", re.DOTALL)
_JSON_WORDS = {"true": True, "false": False, "null": None}
_PAIRS = {"(": ")", "[": "]", "{": "}"}


class PythonicCalls(CallText):
    """Reads them at the answer's beginning."""

    def __init__(self, names: Sequence[str] = (), *, is_single: bool = False) -> None:
        super().__init__(sorted(names, key=len, reverse=True), is_single=is_single)
        self._is_content = self._is_in_list = self._is_in_call = False
        self._num_arguments = 0

    def _advance(self, delta: MessageDelta) -> bool:
        if self._is_content:
            delta.content += self._text
            self._text = ""
            return False
        if self._is_in_call:
            return self._argument(delta)
        return self._name(delta) if self._is_in_list else self._open()

    def _open(self) -> bool:
        stripped = self._text.lstrip()
        if not stripped:
            return False
        # A list of calls, or a list that is the answer: the first name tells.
        inside = stripped[1:].lstrip() if stripped[0] == "[" else None
        if inside is not None and any(inside.startswith(name) for name in self._names):
            found = _NAME.match(inside)
            if found is not None and inside[: found.end() - 1].strip() in self._names:
                self._text, self._is_in_list = inside, True
                return True
        if inside is not None and not self._is_over and self._may_be_name(inside):
            return False
        self._is_content = True
        return True

    def _may_be_name(self, text: str) -> bool:
        """Whether a known name and its bracket may still come of this."""
        word = text.rstrip()
        return any(
            name.startswith(word) or (word == name and len(text) < len(name) + 8)
            for name in self._names
        )

    def _name(self, delta: MessageDelta) -> bool:
        stripped = self._text.lstrip(" \t\r\n,")
        if not stripped:
            return False
        if stripped[0] == "]":
            self._text, self._is_content = stripped[1:], True
            return bool(self._text)
        found = _NAME.match(stripped)
        if found is None:
            if self._is_over or not re.fullmatch(r"[A-Za-z_][\w.]*\s*", stripped):
                self._text, self._is_content = stripped, True
                return True
            return False
        self._begin_call(found[0][:-1].strip(), delta)
        self._text, self._is_in_call, self._num_arguments = stripped[found.end() :], True, 0
        return True

    def _argument(self, delta: MessageDelta) -> bool:
        """The next argument, once its end is there."""
        end = _end_of_argument(self._text)
        if end is None:
            return False
        source, mark = self._text[:end], self._text[end]
        self._text = self._text[end + 1 :]
        if source.strip():
            self._add_arguments("{" if not self._num_arguments else ", ", delta)
            self._add_arguments(_as_json(source, self._num_arguments), delta)
            self._num_arguments += 1
        if mark == ")":
            self._add_arguments("}" if self._num_arguments else "{}", delta)
            self._is_in_call = False
            self._end_call()
        return True

    def _end(self, delta: MessageDelta) -> None:
        if not self._is_in_call and not self._is_in_list:
            super()._end(delta)


def _end_of_argument(text: str) -> int | None:
    """Where the comma or bracket stands that ends an argument."""
    depth: list[str] = []
    quote = ""
    at = 0
    while at < len(text):
        character = text[at]
        if quote:
            if character == "\\":
                at += 1
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character in _PAIRS:
            depth.append(_PAIRS[character])
        elif depth and character == depth[-1]:
            depth.pop()
        elif not depth and character in ",)":
            return at
        at += 1
    return None


def _as_json(source: str, position: int) -> str:
    found = _KEY.match(source)
    key, value = (found[1], source[found.end() :]) if found else (f"arg{position}", source)
    return f"{json.dumps(key)}: {json.dumps(_literal(value.strip()), ensure_ascii=False)}"


def _literal(source: str) -> object:
    """A Python literal, or a JSON value; anything else as its text."""
    if source in _JSON_WORDS:
        return _JSON_WORDS[source]
    try:
        value = json.loads(source)
    except ValueError:
        try:
            value = ast.literal_eval(source)
            json.dumps(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return source
    return value

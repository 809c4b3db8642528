"""Calls as Llama 4 and others write them: the whole answer is ``[name(key="value", n=1), ...]``.

An argument is told when it is complete, as JSON. An answer that does not begin as a call of a known
tool is content.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.tools.json_scan import whole_characters
from octavo.tools.message import CallText, MessageDelta

_BEGUN_NAME = re.compile(r"[\w.-]+\s*")
"""Names are the request's own: OpenAI allows some that Python does not, such as get-weather."""
_NAME = re.compile(_BEGUN_NAME.pattern + r"\(")
_KEYWORD = re.compile(r"""[^\s"'()\[\]{},=]+""")
_KEY = re.compile(rf"\s*({_KEYWORD.pattern})\s*=(?!=)")
_JSON_WORDS = {"true": True, "false": False, "null": None}
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_OF_THE_WHOLE = frozenset(
    str.split(
        "$ref $dynamicRef allOf anyOf oneOf not if then else const enum minProperties "
        "maxProperties patternProperties propertyNames dependentRequired dependentSchemas "
        "dependencies unevaluatedProperties"
    )
)
"""What a schema may ask of an object beside its properties, one by one."""


def why_not(schema: Mapping[str, Any]) -> str | None:
    """Why keywords cannot be made to follow a schema of arguments; None where they can."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    for keyword in schema.keys() & _OF_THE_WHOLE:
        return f"{keyword!r} is about all arguments together; ask it of each of its properties"
    if not isinstance(properties, Mapping):
        return "properties must be an object"
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        return "required must be a list of names"
    for name in required:
        if name not in properties:
            return f"{name!r} is required and none of its properties; add it to them"
    for name in properties:
        if not _KEYWORD.fullmatch(name):
            return f"{name!r} cannot be the keyword in name(keyword=value); give it another name"
    return None


class PythonicCalls(CallText):
    """Reads them at the answer's beginning."""

    def __init__(self, names: Sequence[str] = (), *, is_single: bool = False) -> None:
        super().__init__(sorted(names, key=len, reverse=True), is_single=is_single)
        self._is_content = self._is_in_list = self._is_in_call = False
        self._num_arguments = 0
        self._end_of_argument = ArgumentEnd()

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
            if self._is_over or not _BEGUN_NAME.fullmatch(stripped):
                self._text, self._is_content = stripped, True
                return True
            return False
        self._begin_call(found[0][:-1].strip(), delta)
        self._text, self._is_in_call, self._num_arguments = stripped[found.end() :], True, 0
        return True

    def _argument(self, delta: MessageDelta) -> bool:
        """The next argument, once its end is there."""
        end = self._end_of_argument.find(self._text)
        if end is None:
            return False
        self._end_of_argument = ArgumentEnd()
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


class ArgumentEnd:
    """Finds the comma or bracket that ends an argument, looking at each character once."""

    def __init__(self) -> None:
        self._at = 0
        self._depth: list[str] = []
        self._quote = ""

    def find(self, text: str) -> int | None:
        """Where it stands; None while it is not there. ``text`` begins with that of the call
        before."""
        while self._at < len(text):
            character = text[self._at]
            if self._quote or character in "\"'":
                size = self._in_string(text)
                if not size:
                    return None
                self._at += size
                continue
            if not self._depth and character in ",)":
                return self._at
            if character in _PAIRS:
                self._depth.append(_PAIRS[character])
            elif self._depth and character == self._depth[-1]:
                self._depth.pop()
            self._at += 1
        return None

    def _in_string(self, text: str) -> int:
        """How many characters are read together; 0 where the next ones decide that."""
        three, quote = text[self._at : self._at + 3], self._quote
        if three[0] == "\\" and quote:
            return 2 if len(three) > 1 else 0
        mark = quote or three[0]
        if mark[0] != three[0]:
            return 1
        if len(quote) != 1 and len(three) < 3 and three == mark[0] * len(three):
            return 0  # may become one of three
        if quote and not three.startswith(quote):
            return 1
        if not quote and three == mark * 3:
            mark = three
        self._quote = "" if quote else mark
        return len(mark)


def _as_json(source: str, position: int) -> str:
    found = _KEY.match(source)
    key, value = (found[1], source[found.end() :]) if found else (f"arg{position}", source)
    return f"{json.dumps(key)}: {_value(value.strip())}"


def _value(source: str) -> str:
    """A Python literal, or a JSON value, as JSON; anything else as its text."""
    try:
        return _written(_literal(source))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _written(source)


def _literal(source: str) -> object:
    if source in _JSON_WORDS:
        return _JSON_WORDS[source]
    try:
        return json.loads(source)
    except ValueError:
        return ast.literal_eval(source)


def _written(value: object) -> str:
    return whole_characters(json.dumps(value, ensure_ascii=False, allow_nan=False))

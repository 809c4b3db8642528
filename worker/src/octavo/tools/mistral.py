"""Calls as Mistral's models write them, after ``[TOOL_CALLS]``.

A list of objects, ``[{"name": ..., "arguments": {...}}]``, or since 2025 one call after each mark:
``name{...}``, with ``[ARGS]`` (and before it ``[CALL_ID]``) between name and arguments.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from octavo.tools.json_scan import CallObject, ValueScanner
from octavo.tools.message import CallText, MessageDelta

MARK, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_KEYS = frozenset({"arguments", "parameters"})
_MAX_NAME_CHARS = 256


class _State(enum.Enum):
    CONTENT = "content"
    AFTER_MARK = "after mark"
    IN_LIST = "in list"
    IN_OBJECT = "in object"
    IN_NAME = "in name"
    IN_ARGUMENTS = "in arguments"


class MistralCalls(CallText):
    """Reads both forms. The mark says what is a call, not its name."""

    def __init__(self, names: Sequence[str] = (), *, is_single: bool = False) -> None:
        super().__init__(names, is_single=is_single)
        self._state = _State.CONTENT
        self._call = CallObject(_KEYS)
        self._scanner = ValueScanner()
        self._raw = ""
        """What was read since the mark and may turn out to be content."""

    def _advance(self, delta: MessageDelta) -> bool:
        match self._state:
            case _State.CONTENT:
                if self._take_until([MARK], delta) is None:
                    return False
                self._state, self._raw = _State.AFTER_MARK, MARK
                return True
            case _State.AFTER_MARK:
                return self._after_mark()
            case _State.IN_LIST:
                return self._in_list(delta)
            case _State.IN_OBJECT:
                return self._in_object(delta)
            case _State.IN_NAME:
                return self._in_name(delta)
            case _State.IN_ARGUMENTS:
                size, is_over = self._scanner.scan(self._text)
                self._add_arguments(self._text[:size], delta)
                self._text = self._text[size:]
                if is_over:
                    self._state = _State.CONTENT
                    self._end_call()
                return is_over

    def _after_mark(self) -> bool:
        stripped = self._text.lstrip()
        if not stripped:
            return False
        if stripped[0] == "[":
            self._text, self._state = stripped[1:], _State.IN_LIST
            self._raw += "["
        else:
            self._text, self._state = stripped, _State.IN_NAME
        return True

    def _in_list(self, delta: MessageDelta) -> bool:
        stripped = self._text.lstrip(" \t\r\n,")
        if not stripped:
            self._text = ""
            return False
        if stripped[0] == "]":
            self._text, self._state = stripped[1:], _State.CONTENT
            return True
        if stripped[0] != "{":
            return self._fall_back(stripped, delta)
        self._text, self._call, self._state = stripped, CallObject(_KEYS), _State.IN_OBJECT
        return True

    def _in_object(self, delta: MessageDelta) -> bool:
        call = self._call
        size = call.feed(self._text)
        self._raw += self._text[:size]
        self._text = self._text[size:]
        self._tell(call, delta)
        if call.is_done:
            self._state, self._raw = _State.IN_LIST, ""
        elif call.is_broken:
            if not call.has_begun:
                return self._fall_back(self._text, delta)
            self._state = _State.CONTENT
            self._end_call()
        return call.is_over

    def _in_name(self, delta: MessageDelta) -> bool:
        at = self._text.find("{")
        if at < 0:
            if len(self._text) > _MAX_NAME_CHARS or self._is_over:
                return self._fall_back(self._text, delta)
            return False
        name = self._text[:at].split(CALL_ID)[0].removesuffix(ARGUMENTS).strip()
        if not name or any(character.isspace() for character in name):
            return self._fall_back(self._text, delta)
        self._begin_call(name, delta)
        self._text, self._scanner = self._text[at:], ValueScanner()
        self._state = _State.IN_ARGUMENTS
        return True

    def _fall_back(self, text: str, delta: MessageDelta) -> bool:
        """It was no call: what stands there is content."""
        delta.content += self._raw
        self._raw, self._text, self._state = "", text, _State.CONTENT
        return True

    def _end(self, delta: MessageDelta) -> None:
        is_untold = self._state in (_State.AFTER_MARK, _State.IN_LIST, _State.IN_NAME)
        if is_untold or (self._state is _State.IN_OBJECT and not self._call.has_begun):
            delta.content += self._raw
        super()._end(delta)

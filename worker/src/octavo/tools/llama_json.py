"""Calls as Llama 3 writes them: the whole answer is ``{"name": ..., "parameters": {...}}``.

``<|python_tag|>`` may stand before; several are separated by ``;``. An object that does not begin
as a call of a known tool is the answer itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.tools.json_scan import CallObject
from octavo.tools.message import CallText, MessageDelta

TAG = "<|python_tag|>"
_KEYS = frozenset({"parameters", "arguments"})


class LlamaCalls(CallText):
    """Reads them at the answer's beginning; after anything else all is content."""

    def __init__(self, names: Sequence[str] = (), *, is_single: bool = False) -> None:
        super().__init__(names, is_single=is_single)
        self._known = frozenset(names)
        self._call: CallObject | None = None
        self._raw = ""
        self._is_content = self._is_lost = False
        """Lost: within a call that is no JSON any more before its arguments are whole; what comes
        is taken for them."""

    def _advance(self, delta: MessageDelta) -> bool:
        if self._is_lost:
            self._add_arguments(self._text, delta)
            self._text = ""
            return False
        if self._is_content:
            delta.content += self._text
            self._text = ""
            return False
        if self._call is None:
            return self._begin(delta)
        call = self._call
        size = call.feed(self._text)
        self._raw += self._text[:size]
        self._text = self._text[size:]
        self._tell(call, delta)
        if call.is_done:
            self._call = None
        elif call.is_broken and call.has_arguments and call.has_begun:
            self._call, self._is_content = None, True
            self._end_call()
        elif call.is_broken and call.has_begun:
            self._is_lost = True
        elif call.is_broken:
            self._fall_back(delta)
        return bool(self._text)

    def _begin(self, delta: MessageDelta) -> bool:
        stripped = self._text.lstrip()
        if self.num_calls:
            stripped = stripped.lstrip("; \t\r\n,")
        if stripped.startswith(TAG):
            stripped = stripped[len(TAG) :].lstrip()
        if stripped.startswith("{"):
            self._call, self._raw, self._text = CallObject(_KEYS, self._known), "", stripped
            return True
        if (not stripped or TAG.startswith(stripped)) and not self._is_over:
            return False
        if self.num_calls:
            self._text = stripped
        self._is_content = True
        return True

    def _fall_back(self, delta: MessageDelta) -> None:
        self._text = self._raw + self._text
        self._call, self._is_content = None, True

    def _end(self, delta: MessageDelta) -> None:
        if self._call is not None and not self._call.has_begun:
            delta.content += self._raw
        super()._end(delta)

"""Calls as Hermes and Qwen write them: objects between ``<tool_call>`` and ``</tool_call>``."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.tools.json_scan import CallObject
from octavo.tools.message import CallText, MessageDelta

BEGIN, END = "<tool_call>", "</tool_call>"
_KEYS = frozenset({"arguments", "parameters"})


class HermesCalls(CallText):
    """Reads them, between pieces of content. The marks say what is a call, not its name."""

    def __init__(self, names: Sequence[str] = (), *, is_single: bool = False) -> None:
        super().__init__(names, is_single=is_single)
        self._call: CallObject | None = None
        self._raw = ""
        """The block so far: content after all if it turns out to be no call."""

    def _advance(self, delta: MessageDelta) -> bool:
        call = self._call
        if call is None:
            if self._take_until([BEGIN], delta) is None:
                return False
            self._call, self._raw = CallObject(_KEYS), BEGIN
            return True
        if call.is_over:
            return self._skip_to_end(call, delta)
        size = call.feed(self._text)
        self._raw += self._text[:size]
        self._text = self._text[size:]
        self._tell(call, delta)
        return call.is_over

    def _skip_to_end(self, call: CallObject, delta: MessageDelta) -> bool:
        """To the closing mark. What stands before it, and is no call, is not lost."""
        if call.is_done:
            return self._skip_mark()
        at = self._text.find(END)
        if at < 0 and not self._is_over:
            return False
        rest = self._text[:at] if at >= 0 else self._text
        self._text = self._text[at + len(END) :] if at >= 0 else ""
        if call.has_begun:
            if call.has_arguments:
                delta.content += rest
            else:
                self._add_arguments(rest.rstrip(), delta)
            self._end_call()
        else:
            delta.content += self._raw + rest + END * (at >= 0)
        self._call = None
        return True

    def _skip_mark(self) -> bool:
        """Past a whole call's closing mark, if it is what comes next: models leave it out, too."""
        after = self._text.lstrip()
        if after.startswith(END):
            self._text = after[len(END) :]
        elif END.startswith(after):  # what there is of it
            if not self._is_over:
                return False
            self._text = ""  # the answer was cut within the mark
        self._call = None
        return True

    def _end(self, delta: MessageDelta) -> None:
        call = self._call
        if call is not None and not call.has_begun and not call.is_done:
            delta.content += self._raw
        super()._end(delta)

"""The pieces of a message, and the parser that finds them in a growing text.

A piece is told as soon as nothing that may follow can change it, so what was streamed is always a
prefix of the whole; and pieces do not depend on how the text was cut, so a streamed answer is the
whole one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from octavo.tools.json_scan import CallObject


@dataclass(slots=True)
class CallDelta:
    """What is new of one call. The first delta of a call has its name, and only that one."""

    index: int
    arguments: str = ""
    name: str | None = None


@dataclass(slots=True)
class MessageDelta:
    """What is new of a message."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


class CallParser(Protocol):
    """Reads one way of writing calls. Tells what it finds to a delta."""

    num_calls: int
    """Calls begun so far."""
    has_ended: bool
    """Whether the message is over, whatever may follow: it holds the one call that it may."""

    def feed(self, text: str, delta: MessageDelta) -> None:
        """Take in more text."""

    def finish(self, delta: MessageDelta) -> None:
        """No more will come: tell what was held back."""


class CallText(CallParser):
    """What parsers of calls share: a buffer, and a state that eats from it until it cannot.

    ``names``: of the tools. ``is_single``: the first whole call ends the message; text after it is
    nobody's.
    """

    def __init__(self, names: Sequence[str] = (), *, is_single: bool = False) -> None:
        self._names = names
        self._is_single = is_single
        self.num_calls = 0
        self.has_ended = False
        self._text = ""
        self._is_over = False

    def feed(self, text: str, delta: MessageDelta) -> None:
        """See :class:`CallParser`."""
        self._text += text
        while self._text and not self.has_ended and self._advance(delta):
            pass

    def finish(self, delta: MessageDelta) -> None:
        """See :class:`CallParser`."""
        self._is_over = True
        self.feed("", delta)
        if not self.has_ended:
            self._end(delta)

    @abstractmethod
    def _advance(self, delta: MessageDelta) -> bool:
        """Eat some of the buffer, at most to the end of one call; False when more text is needed
        to go on."""

    def _end(self, delta: MessageDelta) -> None:
        """The buffer that is left is content."""
        delta.content += self._text
        self._text = ""

    def _begin_call(self, name: str, delta: MessageDelta) -> None:
        delta.calls.append(CallDelta(self.num_calls, name=name))
        self.num_calls += 1

    def _end_call(self) -> None:
        """The call is whole, or as whole as it will be."""
        self.has_ended = self._is_single

    def _add_arguments(self, text: str, delta: MessageDelta) -> None:
        index = self.num_calls - 1
        if delta.calls and delta.calls[-1].index == index:
            delta.calls[-1].arguments += text
        elif text:
            delta.calls.append(CallDelta(index, text))

    def _tell(self, call: CallObject, delta: MessageDelta) -> None:
        """What is new of a call that is being read."""
        if call.name is not None:
            self._begin_call(call.name, delta)
            call.name = None
        if call.arguments:
            self._add_arguments(call.arguments, delta)
            call.arguments = ""
        if call.is_done:
            self._end_call()

    def _take_until(self, marks: Sequence[str], delta: MessageDelta) -> str | None:
        """Content up to the first of the marks goes out; returns the mark, which is eaten."""
        found = [(at, mark) for mark in marks if (at := self._text.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            delta.content += self._text[:at]
            self._text = self._text[at + len(mark) :]
            return mark
        kept = 0 if self._is_over else longest_beginning(self._text, marks)
        cut = len(self._text) - kept
        delta.content += self._text[:cut]
        self._text = self._text[cut:]
        return None


def longest_beginning(text: str, marks: Sequence[str]) -> int:
    """How many characters at the text's end may be the beginning of a mark."""
    return max(
        (
            size
            for mark in marks
            for size in range(1, min(len(mark) - 1, len(text)) + 1)
            if text.endswith(mark[:size])
        ),
        default=0,
    )


class MessageParser:
    """Thoughts first, then content and calls."""

    def __init__(
        self,
        calls: CallParser | None = None,
        thoughts: tuple[str, str] | None = None,
        *,
        is_thinking: bool = False,
    ) -> None:
        """``thoughts``: what opens and what closes them; ``is_thinking``: the prompt has opened
        them already."""
        self._calls = calls
        self._thoughts = thoughts
        self._is_thinking = is_thinking and thoughts is not None
        self._may_think = thoughts is not None
        self._text = ""
        """Not told yet: a mark may begin in it."""
        self._space = ""
        """White space of the content that is told when more content comes."""
        self._has_content = self._has_thoughts = False

    @property
    def num_calls(self) -> int:
        """Calls found so far."""
        return 0 if self._calls is None else self._calls.num_calls

    @property
    def has_ended(self) -> bool:
        """Whether nothing that may follow belongs to the message."""
        return self._calls is not None and self._calls.has_ended

    def feed(self, text: str) -> MessageDelta:
        """What more text adds to the message."""
        delta = MessageDelta()
        self._read(text, delta, is_over=False)
        return delta

    def finish(self) -> MessageDelta:
        """What is left when no more text will come."""
        delta = MessageDelta()
        self._read("", delta, is_over=True)
        return delta

    def _read(self, text: str, delta: MessageDelta, *, is_over: bool) -> None:
        if self._may_think:
            text = self._read_thoughts(self._text + text, delta, is_over=is_over)
        if not self._may_think:
            found = MessageDelta()
            if self._calls is None:
                found.content = text
            else:
                self._calls.feed(text, found)
                if is_over:
                    self._calls.finish(found)
            delta.calls = found.calls
            self._add_content(found.content, delta, is_over=is_over)

    def _read_thoughts(self, text: str, delta: MessageDelta, *, is_over: bool) -> str:
        """Tell the thoughts at the text's beginning; returns what comes after them, if they are
        over."""
        assert self._thoughts is not None
        begin, end = self._thoughts
        self._text = ""
        if not self._is_thinking:
            stripped = text.lstrip()
            if stripped.startswith(begin):
                self._is_thinking, text = True, stripped[len(begin) :]
            elif begin.startswith(stripped) and not is_over:
                self._text = text
                return ""
            else:
                self._may_think = False
                return text
        at = text.find(end)
        if at >= 0:
            self._add_thoughts(text[:at].rstrip(), delta)
            self._may_think = False
            return text[at + len(end) :]
        kept = 0 if is_over else max(longest_beginning(text, [end]), len(text) - len(text.rstrip()))
        # White space before a mark that has begun may be the thoughts' end, too.
        cut = len(text[: len(text) - kept].rstrip()) if not is_over else len(text)
        self._add_thoughts(text[:cut], delta)
        self._text = text[cut:]
        if is_over:
            self._may_think = False
        return ""

    def _add_thoughts(self, text: str, delta: MessageDelta) -> None:
        if not self._has_thoughts:
            text = text.lstrip()
        self._has_thoughts = self._has_thoughts or bool(text)
        delta.reasoning += text

    def _add_content(self, text: str, delta: MessageDelta, *, is_over: bool) -> None:
        """White space around calls and after thoughts belongs to nobody."""
        text = self._space + text
        self._space = ""
        if not self._has_content and (self._thoughts or self._calls):
            text = text.lstrip()
        kept = text.rstrip()
        if not is_over:
            self._space = text[len(kept) :]
            text = kept
        elif self.num_calls:
            text = kept
        self._has_content = self._has_content or bool(text)
        delta.content += text


class CallEnd:
    """Finds where a text ends because the one call that it may hold is whole."""

    def __init__(self, parser: MessageParser) -> None:
        """``parser``: a fresh one, of messages of a single call."""
        self._parser = parser

    def is_reached(self, text: str) -> bool:
        """Whether the call is whole with this text, which follows that of earlier calls."""
        self._parser.feed(text)
        return self._parser.has_ended

"""How many of a choice's tokens were thoughts, for the usage that answers tell.

Reads tokens where :mod:`octavo.tools.message` reads text: what opens and closes thoughts is no part
of them, be it a special token or spelled by several.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.engine.interface import TokenReader
from octavo.grammar import ReasoningSpan


class ThoughtCounter:
    """Counts the thoughts of one choice as its tokens come."""

    def __init__(self, tokenizer: TokenReader, span: ReasoningSpan) -> None:
        self._tokenizer = tokenizer
        self._begin, self._end = span.begin.encode(), span.end.encode()
        self._is_open = span.is_open
        self._is_over = False
        self._text = b""
        """The end of what was read, in which a mark may have begun."""
        self._starts: list[int] = []
        """Where in it the tokens begin that were counted."""
        self.num_tokens = 0

    def feed(self, token_ids: Sequence[int]) -> int:
        """How many more tokens are thoughts now; fewer where some turn out to spell the mark that
        closes them."""
        before = self.num_tokens
        for token_id in token_ids:
            if self._is_over:
                break
            self._take(self._bytes_of(token_id))
        return self.num_tokens - before

    def _take(self, data: bytes) -> None:
        if self._is_open:
            self._count(data)
            return
        self._text = (self._text + data).lstrip()
        if self._text.startswith(self._begin):
            self._is_open = True
            first, self._text = self._text[len(self._begin) :], b""
            if first:
                self._count(first)
        elif not self._begin.startswith(self._text):
            self._is_over = True

    def _count(self, data: bytes) -> None:
        self._starts.append(len(self._text))
        self._text += data
        self.num_tokens += 1
        at = self._text.find(self._end)
        if at >= 0:
            self.num_tokens -= sum(start >= at for start in self._starts)
            self._is_over = True
            return
        cut = max(0, len(self._text) - len(self._end) + 1)
        self._text = self._text[cut:]
        self._starts = [start - cut for start in self._starts if start >= cut]

    def _bytes_of(self, token_id: int) -> bytes:
        """Special tokens that are no marks are no text."""
        data = self._tokenizer.token_bytes(token_id)
        is_text = token_id not in self._tokenizer.special_ids or data in (self._begin, self._end)
        return data if is_text else b""

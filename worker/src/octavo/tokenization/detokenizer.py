"""Ids to text, one step at a time.

The concatenation of what :class:`Detokenizer` gives out equals decoding everything at once, for
every split into steps: both read the same bytes, the one through an incremental UTF-8 decoder.
Work per token does not depend on what came before.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence, Set
from typing import Protocol

_MAX_CHARACTER_BYTES = 4
_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class TokenBytes(Protocol):
    """The part of a tokenizer that is needed here."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def drops_first_space(self) -> bool: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class Detokenizer:
    """The text of one growing sequence.

    ``prompt_token_ids``: what the text continues. Its end decides whether a first space belongs
    to the text, and completes a character that was begun there.
    """

    def __init__(
        self,
        tokenizer: TokenBytes,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        shown_ids: Set[int] = frozenset(),
    ) -> None:
        """``shown_ids``: special tokens that are not left out."""
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids - shown_ids if skip_special_tokens else frozenset()
        self._decoder = _utf8_decoder("replace")
        tail = self._tail(prompt_token_ids)
        # Only the bytes of an unfinished character are kept; what they follow was text already.
        self._decoder.decode(tail)
        self._drops_space = tokenizer.drops_first_space and not tail
        self._is_begun = False

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text these ids add; empty while a character is not complete."""
        skipped = self._skipped
        data = b"".join([self._token_bytes(id) for id in token_ids if id not in skipped])
        if self._drops_space and data:
            self._drops_space = False
            data = data.removeprefix(b" ")
        self._is_begun = self._is_begun or bool(data)
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left when no more ids will come: U+FFFD for an unfinished character, unless all
        there is of it is the prompt's."""
        return self._decoder.decode(b"", final=True) if self._is_begun else ""

    def _tail(self, token_ids: Sequence[int]) -> bytes:
        """The last bytes of the prompt, enough to hold the beginning of any character."""
        tail = b""
        for token_id in reversed(token_ids):
            if token_id not in self._skipped:
                tail = self._token_bytes(token_id) + tail
                if len(tail) >= _MAX_CHARACTER_BYTES:
                    break
        return tail[-_MAX_CHARACTER_BYTES:]

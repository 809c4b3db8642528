"""Token log probabilities in OpenAI's two shapes.

A token that is not whole characters is shown as ``bytes:\\xe2\\x82`` in text, as OpenAI does; its
exact bytes stand beside it where the shape has a place for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from octavo.engine.interface import TokenReader
from octavo.outputs import TokenLogprobs
from octavo.server.protocol.answers import (
    ChatLogprob,
    ChatLogprobs,
    CompletionLogprobs,
    TopLogprob,
)

_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say (OpenAI's value)."""


class LogprobWriter:
    """Turns the engine's log probabilities into answers, with a tokenizer's help.

    Without a tokenizer a token is shown as ``token_id:17`` and has no bytes.
    """

    def __init__(self, tokenizer: TokenReader | None) -> None:
        self._tokenizer = tokenizer
        self._bytes_of = lru_cache(maxsize=4096)(self._token_bytes)

    def chat(self, tokens: Sequence[TokenLogprobs]) -> ChatLogprobs:
        """For one chunk or one whole chat answer."""
        return ChatLogprobs([self._chat_token(token) for token in tokens])

    def completion(self, tokens: Sequence[TokenLogprobs], offset: int) -> CompletionLogprobs:
        """For one chunk or one whole completion; ``offset`` counts characters before it."""
        written = CompletionLogprobs([], [], [], [])
        for token in tokens:
            text = self._text(token.token_id)
            written.tokens.append(text)
            written.token_logprobs.append(_finite(token.logprob))
            top = zip(token.top_token_ids, token.top_logprobs, strict=True)
            written.top_logprobs.append({self._text(id_): _finite(value) for id_, value in top})
            written.text_offset.append(offset)
            offset += len(text)
        return written

    def _chat_token(self, token: TokenLogprobs) -> ChatLogprob:
        top = zip(token.top_token_ids, token.top_logprobs, strict=True)
        return ChatLogprob(
            self._text(token.token_id),
            _finite(token.logprob),
            list(self._bytes_of(token.token_id)),
            [
                TopLogprob(self._text(id_), _finite(value), list(self._bytes_of(id_)))
                for id_, value in top
            ],
        )

    def _text(self, token_id: int) -> str:
        if self._tokenizer is None:
            return f"token_id:{token_id}"
        raw = self._bytes_of(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _token_bytes(self, token_id: int) -> bytes:
        return b"" if self._tokenizer is None else self._tokenizer.token_bytes(token_id)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)

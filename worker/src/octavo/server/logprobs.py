"""Token log probabilities in OpenAI's two shapes, and in vLLM's for prompts.

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
    PromptLogprob,
    TopLogprob,
)
from octavo.tokenization.detokenizer import Detokenizer

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say (OpenAI's value)."""


class TextOffsets:
    """Where in a choice's text each of its tokens begins."""

    def __init__(
        self,
        tokenizer: TokenReader | None,
        before: Sequence[int],
        *,
        skip_special_tokens: bool,
        echoed: str = "",
        num_echoed: int = 0,
    ) -> None:
        """``before``: the token ids that the text continues, not part of it. ``echoed``: a prompt
        that the text begins with as it was sent, and how many tokens it became."""
        self._offset = 0
        self._tokenizer, self._echoed, self._num_echoed = tokenizer, echoed, num_echoed
        self._detokenizer: Detokenizer | None = None
        if tokenizer is not None:
            self._detokenizer = Detokenizer(
                tokenizer, before, skip_special_tokens=skip_special_tokens
            )

    def next(self, token_id: int) -> int:
        """The offset of the next token, in characters; a token within one begins where it does."""
        offset = self._offset
        if self._tokenizer is not None and self._detokenizer is not None:
            is_sent = self._num_echoed > 0
            self._num_echoed -= is_sent
            if is_sent and token_id in self._tokenizer.special_ids:
                # Spelled in the prompt, or put around it.
                spelled = self._tokenizer.token_bytes(token_id).decode(errors="replace")
                self._offset += len(spelled) * self._echoed.startswith(spelled, offset)
            else:
                self._offset += len(self._detokenizer.feed([token_id]))
        return offset


class LogprobWriter:
    """Turns the engine's log probabilities into answers, with a tokenizer's help.

    Without a tokenizer, or with ``as_token_ids``, a token is shown as ``token_id:17``.
    """

    def __init__(self, tokenizer: TokenReader | None, *, as_token_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._shows_ids = tokenizer is None or as_token_ids
        self._bytes_of = lru_cache(maxsize=4096)(self._token_bytes)

    def chat(self, tokens: Sequence[TokenLogprobs]) -> ChatLogprobs:
        """For one chunk or one whole chat answer."""
        return ChatLogprobs([self._chat_token(token) for token in tokens])

    def completion(
        self, tokens: Sequence[TokenLogprobs], offsets: TextOffsets
    ) -> CompletionLogprobs:
        """For one chunk or one whole completion."""
        written = CompletionLogprobs([], [], [], [])
        for token in tokens:
            self._add(written, token, len(token.top_token_ids), offsets)
        return written

    def echo(
        self,
        token_ids: Sequence[int],
        scores: Sequence[TokenLogprobs],
        num_top: int,
        offsets: TextOffsets,
    ) -> CompletionLogprobs:
        """For a prompt. ``scores``: of its tokens from the second on; nothing precedes the first.

        Empty where they are not known, as for a request that ended before its first token.
        """
        written = CompletionLogprobs([], [], [], [])
        if len(scores) != len(token_ids) - 1:
            return written
        written.tokens.append(self._text(token_ids[0]))
        written.token_logprobs.append(None)
        written.top_logprobs.append(None)
        written.text_offset.append(offsets.next(token_ids[0]))
        for token in scores:
            self._add(written, token, num_top, offsets)
        return written

    def prompt(
        self, scores: Sequence[TokenLogprobs], num_top: int
    ) -> list[dict[int, PromptLogprob] | None]:
        """vLLM's ``prompt_logprobs``: for each token of the prompt those likeliest there, and
        itself; null for the first."""
        written: list[dict[int, PromptLogprob] | None] = [None]
        for score in scores:
            top = zip(score.top_token_ids[:num_top], score.top_logprobs, strict=False)
            entry = {
                id_: PromptLogprob(finite(value), rank, self._text(id_))
                for rank, (id_, value) in enumerate(top, start=1)
            }
            own = PromptLogprob(finite(score.logprob), score.rank, self._text(score.token_id))
            entry[score.token_id] = own
            written.append(entry)
        return written

    def _add(
        self,
        written: CompletionLogprobs,
        token: TokenLogprobs,
        num_top: int,
        offsets: TextOffsets,
    ) -> None:
        text, logprob = self._text(token.token_id), finite(token.logprob)
        top = zip(token.top_token_ids[:num_top], token.top_logprobs, strict=False)
        written.tokens.append(text)
        written.token_logprobs.append(logprob)
        likeliest = {self._text(id_): finite(value) for id_, value in top}
        # Itself too, so that there may be one more than was asked for: OpenAI's shape.
        written.top_logprobs.append({text: logprob} | likeliest)
        written.text_offset.append(offsets.next(token.token_id))

    def _chat_token(self, token: TokenLogprobs) -> ChatLogprob:
        top = zip(token.top_token_ids, token.top_logprobs, strict=True)
        return ChatLogprob(
            self._text(token.token_id),
            finite(token.logprob),
            list(self._bytes_of(token.token_id)),
            [
                TopLogprob(self._text(id_), finite(value), list(self._bytes_of(id_)))
                for id_, value in top
            ],
        )

    def _text(self, token_id: int) -> str:
        if self._shows_ids:
            return f"token_id:{token_id}"
        raw = self._bytes_of(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _token_bytes(self, token_id: int) -> bytes:
        return b"" if self._tokenizer is None else self._tokenizer.token_bytes(token_id)


def finite(logprob: float) -> float:
    """As JSON can say it."""
    return max(logprob, LEAST_LOGPROB)

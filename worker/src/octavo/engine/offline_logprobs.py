"""Log probabilities in the shape that users of vLLM read."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.outputs import Logprob, TokenLogprobs
from octavo.tokenization.tokenizer import Tokenizer


class OfflineLogprobs:
    """Writes them with a tokenizer's help; without one, tokens have no text."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def by_token(self, scores: Sequence[TokenLogprobs]) -> list[dict[int, Logprob]]:
        """At each place the token that is there first, then the likeliest in their order."""
        return [self._at(score) for score in scores]

    def _at(self, score: TokenLogprobs) -> dict[int, Logprob]:
        own = Logprob(score.logprob, score.rank, self._text(score.token_id))
        found = {score.token_id: own}
        ranked = zip(score.top_token_ids, score.top_logprobs, strict=True)
        for rank, (token_id, logprob) in enumerate(ranked, start=1):
            if token_id != score.token_id:
                found[token_id] = Logprob(logprob, rank, self._text(token_id))
        return found

    def _text(self, token_id: int) -> str | None:
        """What is within a character becomes U+FFFD."""
        if self._tokenizer is None:
            return None
        return self._tokenizer.token_bytes(token_id).decode(errors="replace")

"""Log probabilities in the shape that users of vLLM read."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.outputs import Logprob, TokenLogprobs
from octavo.tokenization.tokenizer import Tokenizer


class OfflineLogprobs:
    """Writes them with a tokenizer's help; without one, tokens have no text."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str | None] = {}

    def by_token(self, scores: Sequence[TokenLogprobs]) -> list[dict[int, Logprob]]:
        """At each place the token that is there first, then the likeliest in their order."""
        return [self._at(score) for score in scores]

    def _at(self, score: TokenLogprobs) -> dict[int, Logprob]:
        texts = self._texts
        for token_id in (score.token_id, *score.top_token_ids):
            if token_id not in texts:
                texts[token_id] = self._text(token_id)
        own_id = score.token_id
        found = {own_id: Logprob(score.logprob, score.rank, texts[own_id])}
        ranked = zip(score.top_token_ids, score.top_logprobs, strict=True)
        for rank, (token_id, logprob) in enumerate(ranked, start=1):
            if token_id != own_id:
                found[token_id] = Logprob(logprob, rank, texts[token_id])
        return found

    def _text(self, token_id: int) -> str | None:
        """What is within a character becomes U+FFFD."""
        if self._tokenizer is None:
            return None
        return self._tokenizer.token_bytes(token_id).decode(errors="replace")

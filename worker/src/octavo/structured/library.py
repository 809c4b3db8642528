"""The grammar library, loaded when it is needed first: its tokenizer, its limits, its errors.

Source: llguidance (https://github.com/guidance-ai/llguidance). Loading it and building the token
trie takes about half a second for 49,152 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from octavo.grammar import Vocabulary
from octavo.structured.refusal import explain

_LIMITS: dict[str, Any] = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
}
"""The library's own bounds on the work for one grammar and for one mask; the lexer's states are
1 to 2 kB each."""

_TEXT = r'[^"\\\x00-\x1F\x7F]'
_SLICES = [
    r"[\x20\x0A\x0D\x09]+",
    *[f"{_TEXT}{{1,{most}}}" for most in (10, 15, 30)],
    f"{_TEXT}+",
]
"""Kinds of tokens that a mask takes as a whole where all of them may come; the others are looked at
one by one. As the library's ``json_slices()``, and up to 15 characters beside 10 and 30: where a
string has room for 15 to 29, its mask takes 38 µs instead of 270 (49,152 tokens)."""


class GrammarLibrary:
    """The library with one model's vocabulary. Its matchers may be used from any thread, one at a
    time each; compiling, and what :attr:`executor` does, release the interpreter."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        num_threads: int = 1,
    ) -> None:
        """``vocab_size``: of the logits; ids past the vocabulary's are never allowed.
        ``num_threads``: that :attr:`executor` has."""
        import llguidance

        tokens = [*vocabulary.tokens[:vocab_size]]
        tokens += [b""] * (vocab_size - len(tokens))
        self._matcher_type: Any = llguidance.LLMatcher
        wrapped = _Wrapped(tokens, vocabulary.special_ids, eos_token_ids)
        self._tokenizer: Any = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(wrapped),
            n_vocab=vocab_size,
            eos_token=list(eos_token_ids),
            slices=_SLICES,
        )
        wrapped.tokenize = self._tokenizer.greedy_tokenize
        self._limits: Any = llguidance.LLParserLimits(**_LIMITS, verbose_errors=False)
        self.executor: Any = llguidance.LLExecutor(num_threads)
        self._tokens = tokens
        self.eos_token_ids = frozenset(eos_token_ids)

    def compile(self, grammar: str) -> Any:
        """A matcher at its beginning.

        Raises ValueError with the reason where the grammar is refused.
        """
        matcher = self._matcher_type(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise ValueError(explain(matcher.get_error()))
        return matcher

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for."""
        return self._tokens[token_id]

    def token_of(self, text: bytes) -> int | None:
        """The token that stands for exactly this text."""
        return self._tokens.index(text) if text in self._tokens else None

    def tokenize(self, text: bytes) -> list[int]:
        """Some tokens that spell these bytes."""
        return list(self._tokenizer.greedy_tokenize(text.decode(errors="replace")))


class _Wrapped:
    """What the library wants of a tokenizer."""

    bos_token_id = None

    def __init__(
        self, tokens: list[bytes], special_ids: Sequence[int], eos_token_ids: Sequence[int]
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = [each for each in special_ids if each < len(tokens)]
        self.eos_token_id = eos_token_ids[0]
        self.tokenize: Callable[[str], list[int]] | None = None

    def __call__(self, text: bytes | str) -> list[int]:
        """Asked for texts that a grammar forces: any tokens that spell them will do."""
        shown = text.decode(errors="replace") if isinstance(text, bytes) else text
        return [] if self.tokenize is None else self.tokenize(shown)

"""Compiled grammars of one model, made in a thread and kept while there is room.

Knows texts, matchers and how much each may weigh; knows nothing of requests' states. A request
that waits for its grammar holds nobody up: whoever wants to know looks, and may be woken.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from octavo.grammar import Grammar, Vocabulary
from octavo.structured.follower import GrammarFollower
from octavo.structured.library import GrammarLibrary

MAX_CACHED = 256
MAX_CACHED_CHARS = 8 * 1024 * 1024
"""Of grammar text; what is compiled of it is larger by a factor that the library's limits bound."""


class GrammarCompiler:
    """Gives every request a follower of its grammar.

    ``vocabulary``: asked for once, when the first grammar comes; raises ValueError where there is
    none. Not thread-safe but for the work in its own thread.
    """

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        vocab_size: int,
        eos_token_ids: Sequence[int],
    ) -> None:
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self.eos_token_ids = frozenset(eos_token_ids)
        self._cache: OrderedDict[bytes, tuple[Future[Any], int]] = OrderedDict()
        self._num_cached_chars = 0
        self._library: GrammarLibrary | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._wake: Callable[[], None] | None = None
        self.num_open = 0
        """Followers given out and not released."""
        self.num_hits = 0
        self.num_compiled = 0

    def when_done(self, wake: Callable[[], None]) -> None:
        """Have ``wake`` called, by the thread, when a grammar is compiled or cannot be."""
        self._wake = wake

    @property
    def library(self) -> GrammarLibrary:
        """The library, once a follower is ready."""
        assert self._library is not None, "no grammar has been compiled yet"
        return self._library

    def follow(
        self, grammar: Grammar, eos_token_ids: Sequence[int], min_tokens: int
    ) -> GrammarFollower:
        """A follower at the beginning of a grammar, which may still be compiling.

        ``eos_token_ids``: those that may end this request; none with ``ignore_eos``.
        """
        self.num_open += 1
        compiled = self._compiled(grammar.text)
        return GrammarFollower(
            compiled, self, grammar.reasoning, eos_token_ids, min_tokens=min_tokens
        )

    def released(self) -> None:
        """A follower is done with."""
        self.num_open -= 1

    def close(self) -> None:
        """Stop compiling and forget everything."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._cache.clear()

    def _compiled(self, text: str) -> Future[Any]:
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        known = self._cache.get(key)
        if known is not None:
            self._cache.move_to_end(key)
            self.num_hits += 1
            return known[0]
        future: Future[Any] = self._thread.submit(self._compile, text)
        future.add_done_callback(self._tell)
        self._cache[key] = (future, len(text))
        self._num_cached_chars += len(text)
        while len(self._cache) > MAX_CACHED or self._num_cached_chars > MAX_CACHED_CHARS:
            if len(self._cache) == 1:
                break
            _, (_, size) = self._cache.popitem(last=False)
            self._num_cached_chars -= size
        return future

    def _tell(self, _: Future[Any]) -> None:
        if self._wake is not None:
            self._wake()

    def _compile(self, text: str) -> Any:
        """In the thread: the only one that loads the library."""
        if self._library is None:
            self._library = GrammarLibrary(
                self._vocabulary(), self._vocab_size, sorted(self.eos_token_ids)
            )
        self.num_compiled += 1
        return self._library.compile(text)

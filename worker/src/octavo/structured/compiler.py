"""Compiled grammars of one model, made in threads and kept while there is room.

Knows texts, matchers and how much each may weigh; knows nothing of requests' states. A request
that waits for its grammar holds nobody up: whoever wants to know looks, and may be woken.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from weakref import WeakValueDictionary

from octavo.grammar import Grammar, Vocabulary
from octavo.structured.compiled_grammar import Compilation, CompiledGrammar
from octavo.structured.follower import GrammarFollower
from octavo.structured.library import GrammarLibrary

MAX_CACHED = 256
"""Automata, of which a grammar that many follow has several."""
MAX_CACHED_CHARS = 8 * 1024 * 1024
"""Of their grammars' text; what is compiled of it is larger by a factor that the library's limits
bound."""
_MAX_COMPILING = 4


class GrammarCompiler:
    """Gives every request a follower of its grammar.

    ``vocabulary``: asked for once, when the first grammar comes unless :meth:`prepare` was called;
    raises ValueError where there is none. ``num_threads`` make the masks of a step. Not thread-safe
    but for the work in its own threads.
    """

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        vocab_size: int,
        eos_token_ids: Sequence[int],
        num_threads: int = 1,
    ) -> None:
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self.eos_token_ids = frozenset(eos_token_ids)
        self._num_threads = num_threads
        self._known: WeakValueDictionary[bytes, CompiledGrammar] = WeakValueDictionary()
        """All that somebody follows, or that are kept."""
        self._kept: OrderedDict[bytes, CompiledGrammar] = OrderedDict()
        """For who comes later; asked for longest ago first."""
        self._library: GrammarLibrary | None = None
        self._loading = threading.Lock()
        self._is_prepared = False
        self._threads = ThreadPoolExecutor(
            min(num_threads, _MAX_COMPILING), thread_name_prefix="grammar"
        )
        self._wake: Callable[[], None] | None = None
        self.num_compiled = 0

    def when_done(self, wake: Callable[[], None]) -> None:
        """Have ``wake`` called, by a thread, when a grammar is compiled or cannot be."""
        self._wake = wake

    def prepare(self) -> None:
        """Load the library in a thread, at the first call. It reads the tokenizer and sorts its
        tokens, which holds the interpreter: for 128,000 tokens about a second in all, that requests
        should not wait for."""
        if not self._is_prepared:
            self._is_prepared = True
            self._threads.submit(self._load)

    @property
    def num_open(self) -> int:
        """Followers given out and not released."""
        return sum(compiled.num_open for compiled in self._known.values())

    @property
    def library(self) -> GrammarLibrary:
        """The library, once a follower is ready."""
        assert self._library is not None, "no grammar has been compiled yet"
        return self._library

    def follow(
        self,
        grammar: Grammar,
        eos_token_ids: Sequence[int],
        min_tokens: int,
        stop_token_ids: Sequence[int] = (),
    ) -> GrammarFollower:
        """A follower at the beginning of a grammar, which may still be compiling.

        ``eos_token_ids``: those that may end this request; none with ``ignore_eos``.
        ``stop_token_ids``: others that end it, from ``min_tokens`` on.
        """
        return GrammarFollower(
            self._compiled(grammar.text),
            grammar.reasoning,
            eos_token_ids,
            min_tokens=min_tokens,
            stop_token_ids=stop_token_ids,
        )

    def consume(self, drawn: Sequence[tuple[GrammarFollower, int]]) -> None:
        """Let the matchers of followers that answer consume a token each, side by side."""
        if drawn:
            # Threads take neighbours: those of one automaton would wait for each other elsewhere.
            drawn = sorted(drawn, key=lambda each: id(each[0].automaton))
            pairs = [(follower.matcher, token_id) for follower, token_id in drawn]
            verdicts = self.library.executor.consume_token_par(pairs)
            for (follower, _), verdict in zip(drawn, verdicts, strict=True):
                follower.foretell(verdict)

    def close(self) -> None:
        """Stop compiling and forget everything."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._kept.clear()

    def _compiled(self, text: str) -> CompiledGrammar:
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        compiled = self._known.get(key)
        if compiled is None:
            # A thread has its masks' automaton, and another is there to be taken over.
            most = 1 if self._num_threads == 1 else 2 * self._num_threads
            compiled = CompiledGrammar(text, lambda: self._begin(text), most)
            self._known[key] = compiled
        elif key not in self._kept:
            self._make_room()
        self._kept[key] = compiled
        self._kept.move_to_end(key)
        return compiled

    def _begin(self, text: str) -> Future[Compilation]:
        """Compile, once more."""
        self._make_room()
        future = self._threads.submit(self._compile, text)
        future.add_done_callback(self._tell)
        return future

    def _make_room(self) -> None:
        """Forget what was asked for longest ago; whoever follows it still does."""
        while len(self._kept) > 1:
            counts = [(len(compiled), len(compiled.text)) for compiled in self._kept.values()]
            num_automata = sum(count for count, _ in counts)
            num_chars = sum(count * size for count, size in counts)
            if num_automata < MAX_CACHED and num_chars <= MAX_CACHED_CHARS:
                break
            self._kept.popitem(last=False)

    def _tell(self, _: Future[Compilation]) -> None:
        if self._wake is not None:
            self._wake()

    def _compile(self, text: str) -> Compilation:
        """In a thread, of which the first loads the library."""
        library = self._load()
        with self._loading:
            self.num_compiled += 1
        started_s = time.thread_time()
        matcher = library.compile(text)
        return Compilation(matcher, library, time.thread_time() - started_s)

    def _load(self) -> GrammarLibrary:
        """In a thread; others wait for it."""
        with self._loading:
            if self._library is None:
                self._library = GrammarLibrary(
                    self._vocabulary(),
                    self._vocab_size,
                    sorted(self.eos_token_ids),
                    self._num_threads,
                )
            return self._library

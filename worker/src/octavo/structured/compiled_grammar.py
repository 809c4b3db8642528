"""One grammar as often as it has to be compiled for its rows to be followed side by side.

Knows compilations and how many follow each; knows nothing of texts or of masks.

Copies of one matcher share its automaton: the states of its lexer, which come about as texts are
followed, under a lock that is held while a mask is made, and counted against the library's limit
(``max_lexer_states``) for as long as the automaton lives (llguidance 1.9.1: ``deep_copy`` of
python_ext/src/llmatcher.rs clones a reference). So masks of rows with one automaton are made one
after the other whatever the threads, and one that is full fails all that follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from octavo.structured.library import GrammarLibrary

ROWS_PER_AUTOMATON = 4
"""More keep threads waiting for each other; fewer find less done by others. Measured: following 128
rows with one, 12 and 128 automata takes 8.4, 9.2 and 12.7 ms of processor time a step."""
MAX_EXTRA_COMPILE_S = 0.05
"""Of processor time: what takes longer to compile is compiled once, and its rows take turns."""


@dataclass(frozen=True, slots=True)
class Compilation:
    """What compiling gives."""

    matcher: Any
    """At its beginning; only to be copied."""
    library: GrammarLibrary
    """That compiled it."""
    seconds: float
    """Of processor time."""


class Automaton:
    """One compilation, under way or done, and how many requests follow it."""

    def __init__(self, compilation: Future[Compilation]) -> None:
        self._compilation = compilation
        self.num_followers = 0

    @property
    def is_done(self) -> bool:
        return self._compilation.done()

    @property
    def error(self) -> BaseException | None:
        """Why it could not be compiled; once it is done."""
        return self._compilation.exception()

    @property
    def seconds(self) -> float:
        """Of processor time to compile it."""
        return self._compilation.result().seconds

    @property
    def library(self) -> GrammarLibrary:
        """That compiled it; once it is done, and well."""
        return self._compilation.result().library

    def new_matcher(self) -> Any:
        return self._compilation.result().matcher.deep_copy()


class CompiledGrammar:
    """The automata of one grammar; ``compile`` begins one more, ``most`` bounds them."""

    def __init__(self, text: str, compile: Callable[[], Future[Compilation]], most: int) -> None:
        self.text = text
        self._compile = compile
        self._most = most
        self._automata = [Automaton(compile())]
        self.num_open = 0
        """Requests that follow it, or wait to."""

    def __len__(self) -> int:
        return len(self._automata)

    def find(self) -> Automaton | None:
        """An automaton for one more request; None while it is to wait for one.

        One that could not be compiled only where none could.
        """
        done = [each for each in self._automata if each.is_done]
        good = [each for each in done if each.error is None]
        if not good:
            return done[0] if len(done) == len(self._automata) else None
        best = min(good, key=lambda each: each.num_followers)
        if best.num_followers < ROWS_PER_AUTOMATON or best.seconds > MAX_EXTRA_COMPILE_S:
            return best
        wanted = min(-(-self.num_open // ROWS_PER_AUTOMATON), self._most)
        self._automata += [Automaton(self._compile()) for _ in range(len(self), wanted)]
        return best if len(done) == len(self._automata) else None

    def retire(self, automaton: Automaton) -> None:
        """Give it to nobody any more."""
        if automaton in self._automata:
            self._automata.remove(automaton)
        if not self._automata:
            self._automata.append(Automaton(self._compile()))

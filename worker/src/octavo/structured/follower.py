"""One request's way through its grammar.

Knows the tokens it has drawn so far and what may come next; knows nothing of rows, of batches or of
the device. It follows the tokens that the host knows, so preemption takes nothing from it.

Where the model thinks before it answers, the grammar begins when the thoughts end::

    UNDECIDED ──first token opens thoughts──► THINKING ──their end──► ANSWERING
        └───────────any other token────────────────────────────────────▲
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from octavo.grammar import ReasoningSpan
from octavo.structured.compiled_grammar import MAX_EXTRA_COMPILE_S, Automaton, CompiledGrammar
from octavo.structured.library import GrammarLibrary

_FULL = "too many states"
"""What the library's error says where an automaton has reached its limit."""


class Phase(enum.Enum):
    """Where a request stands."""

    UNDECIDED = "undecided"
    THINKING = "thinking"
    ANSWERING = "answering"


class GrammarFollower:
    """See :class:`octavo.request.TokenConstraint`."""

    def __init__(
        self,
        grammar: CompiledGrammar,
        reasoning: ReasoningSpan | None,
        eos_token_ids: Sequence[int],
        *,
        min_tokens: int,
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        self._stop_token_ids = tuple(stop_token_ids)
        self._grammar = grammar
        grammar.num_open += 1
        self._automaton: Automaton | None = None
        self._is_released = False
        self._reasoning = reasoning
        self._eos_token_ids = tuple(eos_token_ids)
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self.has_ended = False
        """Whether the model has ended its answer, where the grammar lets it end."""
        self._thoughts = b""
        """The last bytes of the thoughts, enough to find their end in."""
        self._begin_id: int | None = None
        self._matcher: Any = None
        self._answer_ids: list[int] = []
        """What the matcher has consumed."""
        self._verdict: bool | None = None
        self._is_alone = False
        """Whether nobody else can fill the matcher's automaton."""
        self.phase = Phase.ANSWERING
        if reasoning is not None:
            self.phase = Phase.THINKING if reasoning.is_open else Phase.UNDECIDED

    @property
    def is_ready(self) -> bool:
        """Whether the grammar is compiled, or could not be."""
        if self._matcher is not None:
            return True
        if self._automaton is None:
            self._automaton = self._grammar.find()
        if self._automaton is None:
            return False
        if self._automaton.error is None:
            self._automaton.num_followers += 1
            self._matcher = self._automaton.new_matcher()
            self._resolve_begin()
        return True

    @property
    def error(self) -> str | None:
        """Why the grammar cannot be followed; known once ready."""
        if self._automaton is None or self._automaton.error is None:
            return None
        return f"The grammar cannot be compiled: {self._automaton.error}."

    @property
    def matcher(self) -> Any:
        """The library's matcher, for masks in ANSWERING and UNDECIDED."""
        return self._matcher

    @property
    def automaton(self) -> Automaton | None:
        """Whose masks cannot be made at the same time as this one's."""
        return None if self._is_alone else self._automaton

    @property
    def is_full(self) -> bool:
        """Whether the matcher has failed because its automaton has no room for more states."""
        return self._matcher.is_error() and _FULL in self._matcher.get_error()

    def renew(self) -> bool:
        """Start over with an automaton that is nobody else's, on which others leave no traces.

        False where the answer so far, or its grammar, is too much for one as well.
        """
        assert self._automaton is not None
        self._grammar.retire(self._automaton)
        if self._is_alone or self._automaton.seconds > MAX_EXTRA_COMPILE_S:
            return False
        self._is_alone = True
        # At once: it has been compiled before, and not for long.
        self._matcher = self._library.compile(self._grammar.text)
        return bool(self._matcher.consume_tokens(self._answer_ids))

    def foretell(self, is_allowed: bool) -> None:
        """The matcher has consumed the token that :meth:`accept` is told of next."""
        self._verdict = is_allowed

    def accept(self, token_id: int) -> bool:
        """Take in a drawn token; False if the grammar does not allow it."""
        self._num_tokens += 1
        match self.phase:
            case Phase.ANSWERING:
                return self._answer(token_id)
            case Phase.THINKING:
                return self._think(token_id)
            case Phase.UNDECIDED:
                if token_id == self._begin_id:
                    self.phase = Phase.THINKING
                    return True
                self.phase = Phase.ANSWERING
                return self._answer(token_id)

    def allowed_besides(self) -> tuple[int, ...]:
        """Tokens allowed on top of what the matcher says."""
        if self.phase is Phase.UNDECIDED and self._begin_id is not None:
            return (self._begin_id,)
        return ()

    def barred_ends(self, ends: Sequence[int]) -> tuple[int, ...]:
        """Of the model's end-of-text tokens, which the grammar allows at its end, those this
        request may not draw while it may go on: the ones it ignores, and all of them before
        ``min_tokens``."""
        if self._num_tokens < self._min_tokens or self.phase is Phase.THINKING:
            return tuple(ends)
        return tuple(end for end in ends if end not in self._eos_token_ids)

    @property
    def barred_stops(self) -> tuple[int, ...]:
        """The request's own stop tokens, which it may not draw before ``min_tokens`` while it may
        draw anything else."""
        return self._stop_token_ids if self._num_tokens < self._min_tokens else ()

    def release(self) -> None:
        """The request has ended; may be called twice."""
        if self._is_released:
            return
        self._is_released = True
        self._grammar.num_open -= 1
        if self._matcher is not None and self._automaton is not None:
            self._automaton.num_followers -= 1
        self._matcher = None

    @cached_property  # it is asked for at each token
    def _library(self) -> GrammarLibrary:
        assert self._automaton is not None, "the grammar has been compiled"
        return self._automaton.library

    def _answer(self, token_id: int) -> bool:
        verdict, self._verdict = self._verdict, None
        if verdict is None:
            verdict = bool(self._matcher.consume_token(token_id))
        self._answer_ids.append(token_id)
        if not verdict and self.is_full:
            verdict = self.renew()
        if verdict and token_id in self._library.eos_token_ids:
            # A matcher that has failed says that its text may end.
            verdict = self.has_ended = not self._matcher.is_error()
        return verdict

    def _think(self, token_id: int) -> bool:
        assert self._reasoning is not None
        end = self._reasoning.end.encode()
        self._thoughts += self._library.token_bytes(token_id)
        found = self._thoughts.find(end)
        if found < 0:
            self._thoughts = self._thoughts[-len(end) + 1 :] if len(end) > 1 else b""
            return True
        self.phase = Phase.ANSWERING
        # A token may reach past the end of the thoughts; only white space does so in practice.
        rest = self._thoughts[found + len(end) :].strip()
        self._thoughts = b""
        self._answer_ids = self._library.tokenize(rest) if rest else []
        return bool(self._matcher.consume_tokens(self._answer_ids))

    def _resolve_begin(self) -> None:
        """The token that opens thoughts; without one of its own they cannot be told in time, and
        the grammar holds from the first token."""
        if self.phase is not Phase.UNDECIDED:
            return
        assert self._reasoning is not None
        self._begin_id = self._library.token_of(self._reasoning.begin.encode())
        if self._begin_id is None:
            self.phase = Phase.ANSWERING

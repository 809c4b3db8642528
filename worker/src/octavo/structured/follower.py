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
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from octavo.grammar import ReasoningSpan
from octavo.structured.library import one_line

if TYPE_CHECKING:
    from octavo.structured.compiler import GrammarCompiler


class Phase(enum.Enum):
    """Where a request stands."""

    UNDECIDED = "undecided"
    THINKING = "thinking"
    ANSWERING = "answering"


class GrammarFollower:
    """See :class:`octavo.request.TokenConstraint`."""

    def __init__(
        self,
        compiled: Future[Any],
        compiler: GrammarCompiler,
        reasoning: ReasoningSpan | None,
        eos_token_ids: Sequence[int],
        *,
        min_tokens: int,
    ) -> None:
        self._compiled = compiled
        self._compiler: GrammarCompiler | None = compiler
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
        self.phase = Phase.ANSWERING
        if reasoning is not None:
            self.phase = Phase.THINKING if reasoning.is_open else Phase.UNDECIDED

    @property
    def is_ready(self) -> bool:
        """Whether the grammar is compiled, or could not be."""
        if self._matcher is not None:
            return True
        if not self._compiled.done():
            return False
        if self._compiled.exception() is None:
            self._matcher = self._compiled.result().deep_copy()
            self._resolve_begin()
        return True

    @property
    def error(self) -> str | None:
        """Why the grammar cannot be followed; known once ready."""
        if not self._compiled.done() or self._compiled.exception() is None:
            return None
        return f"The grammar cannot be compiled: {one_line(str(self._compiled.exception()))}"

    @property
    def matcher(self) -> Any:
        """The library's matcher, for masks in ANSWERING and UNDECIDED."""
        return self._matcher

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

    def barred_ends(self, ends: Sequence[int], num_other: int) -> tuple[int, ...]:
        """Of the model's end-of-text tokens, which the grammar allows at its end, those this
        request may not draw now: the ones it ignores, and all of them before ``min_tokens``.

        ``num_other``: other tokens that are allowed; with none, ending is all there is to do.
        """
        if not num_other:
            return ()
        if self._num_tokens < self._min_tokens or self.phase is Phase.THINKING:
            return tuple(ends)
        return tuple(end for end in ends if end not in self._eos_token_ids)

    def release(self) -> None:
        """The request has ended; may be called twice."""
        if self._compiler is not None:
            self._compiler.released()
        self._compiler = None
        self._matcher = None

    def _answer(self, token_id: int) -> bool:
        assert self._compiler is not None
        self.has_ended = token_id in self._compiler.eos_token_ids
        return bool(self._matcher.consume_token(token_id))

    def _think(self, token_id: int) -> bool:
        assert self._reasoning is not None
        assert self._compiler is not None
        end = self._reasoning.end.encode()
        self._thoughts += self._compiler.library.token_bytes(token_id)
        found = self._thoughts.find(end)
        if found < 0:
            self._thoughts = self._thoughts[-len(end) + 1 :] if len(end) > 1 else b""
            return True
        self.phase = Phase.ANSWERING
        # A token may reach past the end of the thoughts; only white space does so in practice.
        rest = self._thoughts[found + len(end) :].strip()
        self._thoughts = b""
        return not rest or bool(self._matcher.consume_tokens(self._compiler.library.tokenize(rest)))

    def _resolve_begin(self) -> None:
        """The token that opens thoughts; without one of its own they cannot be told in time, and
        the grammar holds from the first token."""
        if self.phase is not Phase.UNDECIDED:
            return
        assert self._reasoning is not None
        assert self._compiler is not None
        self._begin_id = self._compiler.library.token_of(self._reasoning.begin.encode())
        if self._begin_id is None:
            self.phase = Phase.ANSWERING

"""Rows that draw under a grammar: whose grammar it is, and the masks of a step.

Knows followers of grammars and where the device reads masks; knows nothing of when a step draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from octavo.batch import BatchPlan, Runner, StepHandle
from octavo.engine.messages import RequestSpec
from octavo.engine.waker import Waker
from octavo.errors import InvalidRequestError
from octavo.grammar import Grammar
from octavo.structured.compiler import GrammarCompiler
from octavo.structured.follower import GrammarFollower, Phase
from octavo.structured.masks import MaskFiller

_LONGEST_SLEEP_S = 1.0
"""Where nobody wakes us, as when a grammar is known already."""


class ConstrainedRows:
    """``grammars``: None where there is no vocabulary to match a grammar against."""

    def __init__(self, grammars: GrammarCompiler | None, runner: Runner) -> None:
        self._grammars = grammars
        self._runner = runner
        self._filler: MaskFiller | None = None

    def prepare(self) -> None:
        """Begin to load what grammars are compiled with, unless that was begun."""
        if self._grammars is not None:
            self._grammars.prepare()

    @property
    def num_open(self) -> int:
        """Followers that were not released."""
        return 0 if self._grammars is None else self._grammars.num_open

    def follower(self, spec: RequestSpec) -> GrammarFollower | None:
        """For a request's output, to be released when it ends; None if it is free.

        Raises InvalidRequestError where none can be followed.
        """
        if spec.grammar is None:
            return None
        if self._grammars is None:
            raise InvalidRequestError(
                "This engine has no vocabulary to match a grammar against; leave it out."
            )
        return self._grammars.follow(
            spec.grammar, spec.eos_token_ids, spec.params.min_tokens, spec.stop_token_ids
        )

    def faults(self, grammars: Sequence[Grammar], waker: Waker) -> dict[Grammar, str]:
        """Which of them cannot be compiled, and why. They are compiled side by side; ``waker``:
        what compiling wakes."""
        assert self._grammars is not None, "somebody wants to follow a grammar"
        followers = [self._grammars.follow(grammar, (), 0) for grammar in grammars]
        try:
            while not all(follower.is_ready for follower in followers):
                waker.wait(_LONGEST_SLEEP_S)
            pairs = zip(grammars, followers, strict=True)
            return {grammar: each.error for grammar, each in pairs if each.error is not None}
        finally:
            for follower in followers:
                follower.release()

    def take_in(self, plan: BatchPlan, token_ids: list[int]) -> None:
        """Let the matchers consume what a step drew, side by side, before the scheduler asks each
        for its verdict. ``token_ids``: see :class:`octavo.batch.StepResult`."""
        if not plan.constrained:
            return
        assert self._grammars is not None, "somebody follows a grammar"
        places = list(accumulate(plan.samples, initial=0))
        drawn: list[tuple[GrammarFollower, int]] = []
        for i in plan.constrained:
            grammar = plan.requests[i].grammar
            if grammar is not None:
                assert isinstance(grammar, GrammarFollower)
                if grammar.phase is Phase.ANSWERING:
                    drawn.append((grammar, token_ids[places[i]]))
        self._grammars.consume(drawn)

    def draw(self, plan: BatchPlan, handle: StepHandle) -> None:
        """Make the masks of a step's constrained rows and let it draw."""
        followers: list[GrammarFollower] = []
        mask_rows: dict[int, int] = {}
        for i in plan.constrained:
            grammar = plan.requests[i].grammar
            if grammar is not None:  # else its request has just ended
                assert isinstance(grammar, GrammarFollower)
                mask_rows[i] = len(followers)
                followers.append(grammar)
        self._mask_filler().fill(followers)
        handle.draw(mask_rows)

    def close(self) -> None:
        """End the threads that compile."""
        if self._grammars is not None:
            self._grammars.close()

    def _mask_filler(self) -> MaskFiller:
        """Made when the first masks are wanted: their memory is the device's."""
        if self._filler is None:
            assert self._grammars is not None, "somebody follows a grammar"
            self._filler = MaskFiller(self._grammars, self._runner.mask_memory())
        return self._filler

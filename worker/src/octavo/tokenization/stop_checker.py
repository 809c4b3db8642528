"""Stop strings in a growing text.

A stop string may begin in one step and end in another, so text that may be its beginning is held
back until that is known. One automaton (Aho and Corasick, "Efficient string matching", 1975)
follows all stop strings at once: work per character does not depend on how many there are or how
long they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop string was found; ``text`` is the last that may be shown."""

    text: str
    stop: str


class StopChecker:
    """Holds back what may become a stop string; finds the one that ends first.

    Of several that end at the same character, the one that begins first, which is the longest.
    """

    def __init__(self, stops: Sequence[str], *, include_stop_str_in_output: bool = False) -> None:
        """``stops`` must not be empty strings (``SamplingParams`` refuses them)."""
        self._automaton = _Automaton(stops)
        self._includes_stop = include_stop_str_in_output
        self._state = 0
        self._held = ""

    def feed(self, text: str) -> str | StopMatch:
        """What may be shown now, or the match that ends the text (feed nothing after it)."""
        automaton, state = self._automaton, self._state
        for index, character in enumerate(text):
            state = automaton.next_state(state, character)
            stop = automaton.match(state)
            if stop is not None:
                shown = self._held + text[: index + 1]
                self._held = ""
                if not self._includes_stop:
                    shown = shown[: len(shown) - len(stop)]
                return StopMatch(shown, stop)
        return self._hold(text, state)

    def pass_over(self, text: str) -> str:
        """What may be shown of text that must not end here, though a stop string may begin."""
        state = self._state
        for character in text:
            state = self._automaton.next_state(state, character)
        return self._hold(text, state)

    def _hold(self, text: str, state: int) -> str:
        self._state = state
        pending = self._held + text
        # Invariant: exactly the longest suffix that begins a stop string is held.
        safe = len(pending) - self._automaton.depth(state)
        self._held = pending[safe:]
        return pending[:safe]

    def finish(self) -> str:
        """What was held back, when no more text will come."""
        held, self._held, self._state = self._held, "", 0
        return held


class _Automaton:
    """States are prefixes of the stop strings; 0 is the empty one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._match: list[str | None] = [None]
        self._fallback = [0]
        for stop in stops:
            self._add(stop)
        self._link()

    def depth(self, state: int) -> int:
        """The length of the longest prefix of a stop string that the text ends with."""
        return self._depth[state]

    def match(self, state: int) -> str | None:
        """The longest stop string that the text ends with."""
        return self._match[state]

    def next_state(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._fallback[state]
        return self._next[state].get(character, 0)

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self._next[state].get(character)
            if following is None:
                following = len(self._next)
                self._next[state][character] = following
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._match.append(None)
                self._fallback.append(0)
            state = following
        self._match[state] = stop

    def _link(self) -> None:
        """Fallbacks, shortest prefixes first: the longest proper suffix that is a prefix too."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self._next[state].items():
                self._fallback[child] = self.next_state(self._fallback[state], character)
                queue.append(child)
                if self._match[child] is None:
                    self._match[child] = self._match[self._fallback[child]]

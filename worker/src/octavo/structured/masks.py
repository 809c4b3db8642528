"""Token masks of a step's constrained rows, filled into memory the device reads.

Knows followers and words of bits; knows nothing of requests' states or of the device.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from octavo.batch import MaskMemory
from octavo.structured.compiler import GrammarCompiler
from octavo.structured.follower import GrammarFollower, Phase

_ALL = 0xFFFFFFFF


class MaskFiller:
    """Fills masks with the library's threads; the interpreter is released meanwhile."""

    def __init__(self, compiler: GrammarCompiler, memory: MaskMemory) -> None:
        self._compiler = compiler
        self._memory = memory
        self._ends = sorted(compiler.eos_token_ids)
        words = ctypes.c_uint32 * (memory.num_masks * memory.num_words)
        self._words = memoryview(words.from_address(memory.pointer)).cast("B").cast("I")

    def fill(self, followers: Sequence[GrammarFollower]) -> None:
        """Mask ``i`` says what may come next for follower ``i``."""
        asked = []
        for index, follower in enumerate(followers):
            if follower.phase is Phase.THINKING:
                ctypes.memset(self._pointer(index), 0xFF, self._mask_bytes)
            else:
                asked.append((follower, index))
        # Threads take neighbours: those of one automaton would wait for each other elsewhere.
        asked.sort(key=lambda each: id(each[0].automaton))
        if asked:
            self._compiler.library.executor.unsafe_compute_mask_ptr(
                [(follower.matcher, index) for follower, index in asked],
                self._memory.pointer,
                self._mask_bytes,
                self._memory.num_masks,
            )
        for index in self._with_ends(len(followers)):
            self._settle_ends(index, followers[index])
        for follower, index in asked:
            if follower.phase is Phase.UNDECIDED:
                for token_id in follower.allowed_besides():
                    self._allow(index, token_id)
        for index, follower in enumerate(followers):
            if follower.barred_stops:
                self._bar(index, follower.barred_stops)

    @property
    def _mask_bytes(self) -> int:
        return 4 * self._memory.num_words

    def _pointer(self, index: int) -> int:
        return self._memory.pointer + index * self._mask_bytes

    def _word(self, index: int, token_id: int) -> int:
        return index * self._memory.num_words + token_id // 32

    def _with_ends(self, count: int) -> list[int]:
        """Which of the first masks allow an end of the text: few, as a rule."""
        found: set[int] = set()
        for end in self._ends:
            column = self._words[end // 32 : count * self._memory.num_words]
            bit = 1 << (end % 32)
            words = column[:: self._memory.num_words].tolist()
            found.update(index for index, word in enumerate(words) if word & bit)
        return sorted(found)

    def _settle_ends(self, index: int, follower: GrammarFollower) -> None:
        """Bar the ends that this request may not draw now; where nothing else is allowed, it may.

        A matcher that fails allows an end and nothing else; if others have filled its automaton,
        it gets one of its own.
        """
        is_thinking = follower.phase is Phase.THINKING
        if not is_thinking and follower.is_full and follower.renew():
            follower.matcher.unsafe_compute_mask_ptr(self._pointer(index), self._mask_bytes)
        self._bar(index, follower.barred_ends([e for e in self._ends if self._allows(index, e)]))

    def _bar(self, index: int, token_ids: Sequence[int]) -> None:
        """Bar these, unless nothing else is allowed."""
        barred = [token_id for token_id in token_ids if self._allows(index, token_id)]
        for token_id in barred:
            self._words[self._word(index, token_id)] &= ~(1 << (token_id % 32)) & _ALL
        if barred and not self._has_any(index):
            for token_id in barred:
                self._allow(index, token_id)

    def _has_any(self, index: int) -> bool:
        first = self._word(index, 0)
        return any(self._words[first : first + self._memory.num_words])

    def _allow(self, index: int, token_id: int) -> None:
        self._words[self._word(index, token_id)] |= 1 << (token_id % 32)

    def _allows(self, index: int, token_id: int) -> bool:
        return bool(self._words[self._word(index, token_id)] >> (token_id % 32) & 1)

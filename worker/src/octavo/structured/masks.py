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
        words = ctypes.c_uint32 * memory.num_words
        self._words = (words * memory.num_masks).from_address(memory.pointer)

    def fill(self, followers: Sequence[GrammarFollower]) -> None:
        """Mask ``i`` says what may come next for follower ``i``."""
        asked = []
        for index, follower in enumerate(followers):
            if follower.phase is Phase.THINKING:
                self._allow_all(index)
            else:
                asked.append((follower.matcher, index))
        if asked:
            self._compiler.library.executor.unsafe_compute_mask_ptr(
                asked, self._memory.pointer, 4 * self._memory.num_words, self._memory.num_masks
            )
        for index, follower in enumerate(followers):
            self._settle_ends(index, follower)
            for token_id in follower.allowed_besides():
                self._words[index][token_id // 32] |= 1 << (token_id % 32)

    def _allow_all(self, index: int) -> None:
        ctypes.memset(ctypes.addressof(self._words[index]), 0xFF, 4 * self._memory.num_words)

    def _settle_ends(self, index: int, follower: GrammarFollower) -> None:
        words = self._words[index]
        ends = [end for end in self._ends if words[end // 32] >> (end % 32) & 1]
        if not ends:
            return
        num_other = 1
        if follower.phase is not Phase.THINKING and follower.matcher.is_stopped():
            num_other = 0
        for end in follower.barred_ends(ends, num_other):
            words[end // 32] &= ~(1 << (end % 32)) & _ALL

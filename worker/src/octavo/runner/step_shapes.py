"""The padded shapes that steps are captured in: which one serves a plan, and which come first.

Knows numbers of tokens and sequences; knows nothing of tensors. A shape holds its decodes first,
padded to a size of their own, so that each kernel gets the sequences it is made for; then the
sequences that compute several tokens, padded in number, and in all so many tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from octavo.batch import BatchPlan
from octavo.kernels.adapters import AdapterUse
from octavo.sampling.sampler import DrawKind

_DECODES = (
    1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512,
)  # fmt: skip
_DECODES_BESIDE_PROMPTS = (
    0, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512,
)  # fmt: skip
_PREFILLS = (4, 16, 64, 128, 256, 512)
_TOKENS = (
    16, 32, 64, 128, 192, 256, 384, 512, 576, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2112,
)  # fmt: skip
"""The last holds a step of 2048 tokens whatever its decodes are padded to."""
_LONGEST_EARLY_PREFILL = 1024
_KINDS = (DrawKind.RANDOM, DrawKind.GREEDY, DrawKind.FILTERED)
_ADAPTED_KINDS = (DrawKind.RANDOM, DrawKind.GREEDY)
"""Filtered draws with adapters are captured when they occur, as graphs are not for nothing."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a captured step is made for."""

    num_decodes: int
    """Sequences of one token; they come first."""
    num_prefills: int
    """Sequences of any number of tokens, after them."""
    num_tokens: int
    kind: DrawKind
    shares: bool = False
    """Whether decodes read blocks that they have in common once."""
    adapters: AdapterUse = AdapterUse.NONE
    """Of the step's tokens: one without any costs what it would if there were none."""

    @property
    def num_sequences(self) -> int:
        return self.num_decodes + self.num_prefills

    @property
    def is_decode(self) -> bool:
        """Whether every sequence computes one token."""
        return not self.num_prefills

    def place_of(self, index: int, plan: BatchPlan) -> int:
        """Where the plan's sequence ``index`` stands in the shape."""
        return index if index < plan.num_decodes else index - plan.num_decodes + self.num_decodes


class StepShapes:
    """The shapes for at most ``max_num_seqs`` sequences and, where some compute several tokens and
    without padding, about ``max_num_tokens`` tokens a step."""

    def __init__(
        self, max_num_seqs: int, max_num_tokens: int, adapters: Sequence[AdapterUse] = ()
    ) -> None:
        """``adapters``: the uses of adapters that make a difference, beside none."""
        self._adapters = adapters
        self._decodes = _up_to(_DECODES, max_num_seqs)
        self._decodes_beside = _up_to(_DECODES_BESIDE_PROMPTS, max_num_seqs)
        self._prefills = _up_to(_PREFILLS, max_num_seqs)
        # One size past the budget: padding of decodes may take a step over it.
        self._tokens = list(_TOKENS[: bisect_left(_TOKENS, max_num_tokens) + 2])

    @property
    def max_num_sequences(self) -> int:
        """Of any shape."""
        return self._decodes_beside[-1] + self._prefills[-1]

    def largest(self) -> list[StepShape]:
        """For each kind of draw the shapes that need most memory."""
        num_decodes, num_prefills = self._decodes_beside[-1], self._prefills[-1]
        num_tokens = max(self._tokens[-1], num_decodes + 1)
        shapes = []
        for kind in _KINDS:
            shapes += [
                StepShape(num_decodes, num_prefills, num_tokens, kind),
                StepShape(num_decodes, num_prefills, num_tokens, kind, shares=True),
                StepShape(self._decodes[-1], 0, self._decodes[-1], kind),
            ]
        few, many = self._decodes[0], self._decodes[-1]
        adapted = [StepShape(size, 0, size, DrawKind.GREEDY) for size in (few, many)]
        adapted += [
            StepShape(0, num_prefills, size, DrawKind.GREEDY)
            for size in (512, 1024)
            if num_prefills < size < num_tokens
        ]
        adapted += [
            StepShape(num_decodes, num_prefills, num_tokens, kind, shares)
            for kind in _KINDS
            for shares in (False, True)
        ]
        return shapes + self._adapted(adapted)

    def covering(self) -> list[StepShape]:
        """Shapes that together run every kernel that any shape runs: each once."""
        # Products of few tokens have kernels of their own for their numbers, and attention over
        # short prompts has one.
        few = [StepShape(size, 0, size, DrawKind.GREEDY) for size in self._decodes]
        prefills = [StepShape(0, self._prefills[0], size, DrawKind.GREEDY) for size in self._tokens]
        # What adapters add is cut by the number of tokens.
        shapes = [*self.largest(), *few, prefills[0], *self._adapted([*few, *prefills])]
        return list(dict.fromkeys(shapes))

    def _adapted(self, shapes: Sequence[StepShape]) -> list[StepShape]:
        """The same for each use of adapters that makes a difference."""
        return [replace(shape, adapters=use) for use in self._adapters for shape in shapes]

    def shape_for(
        self, plan: BatchPlan, kind: DrawKind, adapters: AdapterUse = AdapterUse.NONE
    ) -> StepShape | None:
        """The shape that serves a plan; None if it is too large for any."""
        num_prefills = len(plan.rows) - plan.num_decodes
        if not num_prefills:
            size = _at_least(self._decodes, plan.num_decodes)
            return StepShape(size, 0, size, kind, bool(plan.shared_lens), adapters)
        num_decodes = _at_least(self._decodes_beside, plan.num_decodes)
        num_tokens = plan.total_tokens - plan.num_decodes + num_decodes
        if num_tokens > self._tokens[-1]:
            return None
        return StepShape(
            num_decodes,
            _at_least(self._prefills, num_prefills),
            _at_least(self._tokens, num_tokens),
            kind,
            bool(plan.shared_lens),
            adapters,
        )

    def by_use(self) -> Iterator[StepShape]:
        """Shapes worth capturing before anyone asks: the largest, in whose memory all others find
        room (to get more would wait for the device), then those of few requests first.

        Decodes of every size, and prompts alone. How many decodes stand beside how many
        prompts depends on the load: those are captured when they occur. With adapters, first all
        without. Last come decodes that draw later.
        """
        most_used = self._adapters[-1] if self._adapters else AdapterUse.NONE
        largest = max(
            self.largest(), key=lambda shape: (shape.num_tokens, shape.adapters is most_used)
        )
        yield replace(largest, kind=DrawKind.FILTERED)
        yield from self._by_size(_KINDS)
        for use in self._adapters:
            for shape in self._by_size(_ADAPTED_KINDS):
                yield replace(shape, adapters=use)
        for size in self._decodes:
            yield StepShape(size, 0, size, DrawKind.LATER)

    def _by_size(self, kinds: tuple[DrawKind, ...]) -> Iterator[StepShape]:
        prefills = [size for size in self._tokens if size <= _LONGEST_EARLY_PREFILL]
        for place in range(max(len(self._decodes), len(prefills))):
            for kind in kinds:
                if place < len(self._decodes):
                    size = self._decodes[place]
                    yield StepShape(size, 0, size, kind)
                if place < len(prefills):
                    yield StepShape(0, self._prefills[0], prefills[place], kind)


def _up_to(sizes: tuple[int, ...], limit: int) -> list[int]:
    return [size for size in sizes if size < limit] + [limit]


def _at_least(sizes: list[int] | tuple[int, ...], number: int) -> int:
    return sizes[min(bisect_left(sizes, number), len(sizes) - 1)]

"""Which decoding requests hold the same first blocks, so that a step can read those once.

Knows requests' block tables; decides whether sharing is worth a pass of its own. A block id at
some index stands for all tokens before it too (blocks are shared by their prefix's hash only), so
two requests share up to the last index at which their tables agree, found by bisection, and
requests with one id at :data:`MIN_SHARED_BLOCKS` - 1 form a group. Before that index a request may
hold a block of its own with the same in it, where both computed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from octavo.request import Request

MIN_SHARED_BLOCKS = 16
MIN_TOKENS_SAVED = 16_384
"""Cached tokens that a step need not read again: below that the pass costs what it saves."""


class _Group:
    """Requests that share at least the least number of blocks."""

    __slots__ = ("members", "num_blocks", "shortest")

    def __init__(self, request: Request, num_full_blocks: int) -> None:
        self.members: dict[Request, int] = {request: num_full_blocks}
        """Each with the blocks that were full when it joined."""
        self.num_blocks = num_full_blocks
        """How many all of them have in common."""
        self.shortest = request
        """Who, compared with the first, kept it from being more."""

    def join(self, request: Request, num_full_blocks: int) -> None:
        other = next(iter(self.members)).block_ids
        common = _num_common(request.block_ids, other, min(num_full_blocks, self.num_blocks))
        if common < self.num_blocks:
            self.num_blocks, self.shortest = common, request
        self.members[request] = num_full_blocks

    def without(self, requests: Set[Request]) -> _Group | None:
        """The group that is left; None if nobody is."""
        left = [item for item in self.members.items() if item[0] not in requests]
        if not left:
            return None
        group = _Group(*left[0])
        # All were compared with the first: without it or the shortest they may share more.
        if not requests.isdisjoint((self.shortest, next(iter(self.members)))):
            for request, num_full_blocks in left[1:]:
                group.join(request, num_full_blocks)
        else:
            group.members = dict(left)
            group.num_blocks, group.shortest = self.num_blocks, self.shortest
        return group

    @property
    def num_blocks_saved(self) -> int:
        return (len(self.members) - 1) * self.num_blocks


def _num_common(blocks: list[int], others: list[int], most: int) -> int:
    """How many first blocks two tables have in common, at most ``most``."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if blocks[middle - 1] == others[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


class PrefixSharers:
    """The groups among the requests that decode."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._groups: dict[int, _Group] = {}
        self._keys: dict[Request, int] = {}

    def join(self, request: Request) -> None:
        """A request begins to decode: its blocks up to its last computed token are full."""
        num_full_blocks = request.num_computed_tokens // self._block_size
        if num_full_blocks < MIN_SHARED_BLOCKS:
            return
        key = self._keys[request] = request.block_ids[MIN_SHARED_BLOCKS - 1]
        group = self._groups.get(key)
        if group is None:
            self._groups[key] = _Group(request, num_full_blocks)
        else:
            group.join(request, num_full_blocks)

    def leave(self, requests: Set[Request]) -> None:
        """They decode no more; their blocks may be gone already."""
        keys = {self._keys.pop(request, None) for request in requests} - {None}
        for key in keys:
            assert key is not None
            group = self._groups.pop(key).without(requests)
            if group is not None:
                self._groups[key] = group

    def shared_lens(self, requests: Iterable[Request]) -> list[int]:
        """For each request the tokens that the best group shares, 0 for those outside it.

        Empty where no group saves enough.
        """
        best = max(self._groups.values(), key=lambda group: group.num_blocks_saved, default=None)
        if best is None or best.num_blocks_saved * self._block_size < MIN_TOKENS_SAVED:
            return []
        length = best.num_blocks * self._block_size
        members = best.members
        return [length if request in members else 0 for request in requests]

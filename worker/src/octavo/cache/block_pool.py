"""The blocks of KV memory: which are free, which are cached, which are owned and how often.

Knows block ids, reference counts and the order of eviction; knows nothing of requests or of
what a block contains beyond its hash.

A block is *owned* (reference count above 0), *cached* (nobody's, but its hash is in the prefix
index and its contents can be revived) or *free*. Free and cached blocks form one doubly linked
list inside the block objects, so take, free and revive are O(1)::

    head <-> free, latest first <-> cached, least recently used first <-> tail
             taken first ─────────────────────────────────────────────► taken last
"""

from __future__ import annotations

from collections.abc import Iterable

from octavo.cache.prefix_index import PrefixIndex


class Block:
    """One block; ``previous`` and ``next`` are set while nobody owns it."""

    __slots__ = ("hash", "id", "next", "num_owners", "previous")

    def __init__(self, id: int) -> None:
        self.id = id
        self.num_owners = 0
        self.hash: bytes | None = None
        """Name in the prefix index; None: not there."""
        self.previous: Block | None = None
        self.next: Block | None = None


class BlockPool:
    """All blocks of one device's KV cache."""

    def __init__(self, num_blocks: int) -> None:
        self.index = PrefixIndex()
        self.num_blocks = num_blocks
        self.num_available = 0
        """Blocks that can be taken now: free and cached."""
        self.num_cached = 0
        """Those of them whose contents can still be revived."""
        self._blocks = [Block(id) for id in range(num_blocks)]
        self._head, self._tail = Block(-1), Block(-1)  # sentinels, in no other list
        self._head.next, self._tail.previous = self._tail, self._head
        for block in self._blocks:
            self._link_before(self._tail, block)

    @property
    def num_owned(self) -> int:
        return self.num_blocks - self.num_available

    def num_owners(self, block_id: int) -> int:
        return self._blocks[block_id].num_owners

    def take(self, count: int) -> list[int]:
        """Own ``count`` blocks, evicting the least recently used cached ones if need be."""
        assert count <= self.num_available, f"{count} blocks asked, {self.num_available} left"
        taken = []
        for _ in range(count):
            block = self._head.next
            assert block is not None
            self._unlink(block)
            if block.hash is not None:
                self._forget(block)
            block.num_owners = 1
            taken.append(block.id)
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """Add an owner to blocks found in the index; cached ones are revived."""
        for block_id in block_ids:
            block = self._blocks[block_id]
            if block.num_owners == 0:
                assert block.hash is not None, f"block {block_id} is free, not cached"
                self._unlink(block)
                self.num_cached -= 1
            block.num_owners += 1

    def release(self, block_ids: list[int]) -> None:
        """Drop one owner of a sequence's blocks, given in the sequence's order.

        The tail goes into the list before the head, so it is evicted first: a beginning
        without its continuation is of use, a continuation without its beginning is not.
        """
        for block_id in reversed(block_ids):
            block = self._blocks[block_id]
            assert block.num_owners > 0, f"block {block_id} is released twice"
            block.num_owners -= 1
            if block.num_owners:
                continue
            if block.hash is None:  # nothing to lose: the next to be taken
                self._link_before(self._first(), block)
            else:
                self._link_before(self._tail, block)
                self.num_cached += 1

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Make an owned block findable; no effect if another holds the same tokens."""
        block = self._blocks[block_id]
        assert block.num_owners > 0, f"block {block_id} is registered without an owner"
        if block.hash is None and self.index.add(block_hash, block_id):
            block.hash = block_hash

    def forget_cached(self) -> None:
        """Turn every cached block into a free one; owned ones stay findable."""
        block = self._first()
        while block is not self._tail:
            if block.hash is not None:
                self._forget(block)
            assert block.next is not None
            block = block.next

    def check_integrity(self) -> None:
        """Raise AssertionError unless lists, counts and index agree: free + cached + owned = total.

        O(num_blocks); called when idle and by tests.
        """
        linked: list[Block] = []
        block = self._first()
        while block is not self._tail:
            assert block.previous is not None, f"block {block.id} has no previous"
            assert block.previous.next is block, f"links around block {block.id} disagree"
            assert block.num_owners == 0, f"block {block.id} is owned, yet can be taken"
            assert len(linked) < self.num_blocks, "the free list is a ring"
            linked.append(block)
            assert block.next is not None, f"block {block.id} has no next"
            block = block.next
        num_cached = sum(block.hash is not None for block in linked)
        num_owned = sum(block.num_owners > 0 for block in self._blocks)
        assert (num_cached, len(linked)) == (self.num_cached, self.num_available), "counts drifted"
        assert len(linked) + num_owned == self.num_blocks, "free + cached + owned != total"
        hashed = [block for block in self._blocks if block.hash is not None]
        assert len(hashed) == len(self.index), "the index names blocks that have no hash"
        for block in hashed:
            assert block.hash is not None
            assert self.index.get(block.hash) == block.id, f"block {block.id} is misnamed"

    def _first(self) -> Block:
        first = self._head.next
        assert first is not None
        return first

    def _link_before(self, after: Block, block: Block) -> None:
        before = after.previous
        assert before is not None
        block.previous, block.next = before, after
        before.next = after.previous = block
        self.num_available += 1

    def _unlink(self, block: Block) -> None:
        before, after = block.previous, block.next
        assert before is not None, f"block {block.id} is not in the free list"
        assert after is not None, f"block {block.id} is not in the free list"
        before.next, after.previous = after, before
        block.previous = block.next = None
        self.num_available -= 1

    def _forget(self, block: Block) -> None:
        assert block.hash is not None
        self.index.remove(block.hash)
        block.hash = None
        self.num_cached -= 1

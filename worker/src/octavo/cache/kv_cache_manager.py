"""Which blocks each request holds, and which it can share.

Knows requests' tokens and the block pool; knows nothing of priorities or of when a step runs.
The scheduler decides, this carries it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from octavo.cache.block_pool import BlockPool
from octavo.cache.prefix_index import hash_blocks
from octavo.request import Request


class KVCacheManager:
    """Block tables of all requests on one device. Those with one cache key share blocks."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.prefix_queries = 0
        """Prompt tokens looked up in the prefix index; after a preemption not again."""
        self.prefix_hits = 0
        """Those of them that were found."""

    @property
    def num_free_blocks(self) -> int:
        """Blocks a request can take now, cached ones included."""
        return self.pool.num_available

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def prepare(self, request: Request) -> None:
        """Make sure the prompt's hashes are there; intake normally brings them."""
        if request.cache_key is not None:
            self._extend_hashes(request)

    def find_prefix(self, request: Request) -> list[int]:
        """Blocks that hold the beginning of the request's known tokens; changes nothing.

        Never all of them: the last token is computed, so that there is something to draw from.
        None where every position has to be computed to be read.
        """
        if request.cache_key is None or request.reads_whole_prompt:
            return []
        max_blocks = (len(request.token_ids) - 1) // self.block_size
        return self.pool.index.longest_prefix(request.block_hashes, max_blocks)

    def num_blocks_to_take(self, request: Request, prefix: list[int]) -> int:
        """Blocks the pool loses if the request is given room for all its known tokens."""
        num_blocks = self.blocks_for(len(request.token_ids))
        if not prefix:
            return num_blocks
        num_owners = self.pool.num_owners
        revived = sum(num_owners(block_id) == 0 for block_id in prefix)
        return num_blocks - len(prefix) + revived

    def allocate(self, request: Request, prefix: list[int]) -> None:
        """Give the request room for all its known tokens, ``prefix`` first."""
        assert not request.block_ids, f"{request} holds blocks already"
        self.pool.share(prefix)  # first: taking could evict them
        fresh = self.pool.take(self.blocks_for(len(request.token_ids)) - len(prefix))
        request.block_ids = prefix + fresh
        is_lookup = request.cache_key is not None and not request.reads_whole_prompt
        if is_lookup and not request.num_preemptions:
            self.prefix_queries += len(request.token_ids)
            self.prefix_hits += len(prefix) * self.block_size

    def extend(self, request: Request) -> list[int]:
        """One more block at the end of the request's table."""
        fresh = self.pool.take(1)
        request.block_ids += fresh
        return fresh

    def free(self, request: Request) -> None:
        """Take all blocks from a request; registered ones stay findable until evicted."""
        self.pool.release(request.block_ids)
        request.block_ids = []

    def register(self, request: Request, start: int, end: int) -> None:
        """Make findable the blocks that computing positions ``start : end`` has filled."""
        first, last = start // self.block_size, end // self.block_size
        if first == last or request.cache_key is None:
            return
        if len(request.block_hashes) < last:
            self._extend_hashes(request)
        for i in range(first, last):
            self.pool.register(request.block_ids[i], request.block_hashes[i])

    def check_integrity(self, holders: Iterable[Request]) -> None:
        """Raise AssertionError unless exactly ``holders`` own blocks, as their tables say."""
        self.pool.check_integrity()
        owners = Counter(block_id for request in holders for block_id in request.block_ids)
        for block_id in range(self.pool.num_blocks):
            assert self.pool.num_owners(block_id) == owners[block_id], (
                f"block {block_id} counts {self.pool.num_owners(block_id)} owners, "
                f"but {owners[block_id]} requests hold it"
            )

    def _extend_hashes(self, request: Request) -> None:
        assert request.cache_key is not None
        hashes = request.block_hashes
        start = len(hashes) * self.block_size
        if len(request.token_ids) - start >= self.block_size:
            parent = hashes[-1] if hashes else None
            hashes += hash_blocks(
                request.token_ids, self.block_size, request.cache_key, parent, start
            )

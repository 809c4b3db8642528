"""Which block holds the keys and values of which beginning of a prompt.

Knows hashes and block ids; knows nothing of who uses a block or when it may be evicted (the
block pool does). A beginning is named by a chain of keyed hashes: each full block's hash covers
its parent's hash and its own token ids, so equal hashes mean equal tokens from position 0 on.
BLAKE2b with 128 bits: two different beginnings that collide cannot be constructed, which a
64-bit or unkeyed Python hash would allow one tenant to do to another.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

HASH_BYTES = 16
_ROOT = bytes(HASH_BYTES)
_TOKEN = array("I")
_TOKEN_BYTES = _TOKEN.itemsize


def hash_blocks(
    token_ids: Sequence[int],
    block_size: int,
    cache_key: bytes,
    parent: bytes | None = None,
    start: int = 0,
) -> list[bytes]:
    """Hashes of the full blocks of ``token_ids[start:]``, first block first.

    ``start`` is a multiple of ``block_size`` and ``parent`` the hash of the block that ends
    there (None at the sequence's beginning). ``cache_key`` holds at most 64 bytes (BLAKE2b's
    key): requests with different keys never share a block.
    """
    assert start % block_size == 0, f"{start} is inside a block of {block_size}"
    assert (parent is None) == (start == 0), "a parent belongs to every block but the first"
    num_blocks = (len(token_ids) - start) // block_size
    data = array("I", token_ids[start : start + num_blocks * block_size]).tobytes()
    step = block_size * _TOKEN_BYTES
    blake2b = hashlib.blake2b
    previous = parent if parent is not None else _ROOT
    hashes = []
    for offset in range(0, num_blocks * step, step):
        block = previous + data[offset : offset + step]
        previous = blake2b(block, digest_size=HASH_BYTES, key=cache_key).digest()
        hashes.append(previous)
    return hashes


class PrefixIndex:
    """Hash of a beginning → the one block that holds its last tokens."""

    __slots__ = ("_block_ids",)

    def __init__(self) -> None:
        self._block_ids: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._block_ids)

    def get(self, block_hash: bytes) -> int | None:
        return self._block_ids.get(block_hash)

    def add(self, block_hash: bytes, block_id: int) -> bool:
        """Name a block; False if another block already holds the same tokens."""
        return self._block_ids.setdefault(block_hash, block_id) == block_id

    def remove(self, block_hash: bytes) -> None:
        del self._block_ids[block_hash]

    def longest_prefix(self, block_hashes: Sequence[bytes], max_blocks: int) -> list[int]:
        """Blocks of the longest known beginning, at most ``max_blocks`` of them."""
        get = self._block_ids.get
        found = []
        for block_hash in block_hashes[:max_blocks]:
            block_id = get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

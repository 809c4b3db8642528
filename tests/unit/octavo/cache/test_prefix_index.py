"""Equal names for equal beginnings, and for nothing else."""

from __future__ import annotations

import pytest

from octavo.cache.prefix_index import HASH_BYTES, PrefixIndex, hash_blocks

KEY = b"tenant"
TOKENS = list(range(100, 112))


def test_only_full_blocks_are_hashed() -> None:
    hashes = hash_blocks(TOKENS[:11], 4, KEY)
    assert len(hashes) == 2
    assert {len(h) for h in hashes} == {HASH_BYTES}
    assert hash_blocks([1, 2, 3], 4, KEY) == []


def test_hashing_on_from_a_parent_equals_hashing_at_once() -> None:
    whole = hash_blocks(TOKENS, 4, KEY)
    assert hash_blocks(TOKENS, 4, KEY, parent=whole[0], start=4) == whole[1:]


@pytest.mark.parametrize("position", range(8))
def test_one_other_token_changes_its_block_and_all_after_it(position: int) -> None:
    changed = list(TOKENS)
    changed[position] += 1
    pairs = zip(hash_blocks(TOKENS, 4, KEY), hash_blocks(changed, 4, KEY), strict=True)
    assert [a == b for a, b in pairs] == [i < position // 4 for i in range(3)]


def test_another_cache_key_changes_every_hash() -> None:
    assert not set(hash_blocks(TOKENS, 4, KEY)) & set(hash_blocks(TOKENS, 4, b"other"))


def test_equal_blocks_at_different_places_have_different_names() -> None:
    first, second = hash_blocks([5, 6] * 2, 2, KEY)
    assert first != second


def test_lookup_ends_at_the_first_gap() -> None:
    index = PrefixIndex()
    a, b, c = hash_blocks(TOKENS, 4, KEY)
    index.add(a, 3)
    index.add(c, 5)
    assert index.longest_prefix([a, b, c], 3) == [3]
    index.add(b, 4)
    assert index.longest_prefix([a, b, c], 3) == [3, 4, 5]
    assert index.longest_prefix([a, b, c], 2) == [3, 4]


def test_hash_cannot_be_continued_inside_a_block() -> None:
    with pytest.raises(AssertionError):
        hash_blocks(TOKENS, 4, KEY, parent=bytes(16), start=3)

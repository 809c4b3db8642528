"""Who gets which block, and what is forgotten first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo.cache.block_pool import BlockPool


def name(number: int) -> bytes:
    return number.to_bytes(16, "little")


def pool_with_cached(num_blocks: int, count: int) -> BlockPool:
    """``count`` cached blocks 0, 1, … of one sequence, named by their ids; the rest free."""
    pool = BlockPool(num_blocks)
    block_ids = pool.take(count)
    for block_id in block_ids:
        pool.register(block_id, name(block_id))
    pool.release(block_ids)
    pool.check_integrity()
    return pool


def test_free_blocks_are_taken_before_cached_ones() -> None:
    pool = pool_with_cached(4, 2)
    assert sorted(pool.take(2)) == [2, 3]
    assert pool.num_cached == 2
    pool.check_integrity()


def test_tail_of_a_sequence_is_evicted_before_its_head() -> None:
    pool = pool_with_cached(3, 3)
    assert [pool.take(1) for _ in range(3)] == [[2], [1], [0]]
    pool.check_integrity()


def test_least_recently_used_sequence_is_evicted_first() -> None:
    pool = pool_with_cached(2, 2)
    pool.share([1])
    pool.release([1])  # used again, so 0 is the older now
    assert pool.take(1) == [0]
    assert pool.index.get(name(0)) is None
    assert pool.index.get(name(1)) == 1
    pool.check_integrity()


def test_revived_block_keeps_its_name_and_is_not_taken() -> None:
    pool = pool_with_cached(2, 1)
    pool.share([0])
    assert pool.take(1) == [1]
    assert pool.num_available == 0
    assert pool.index.get(name(0)) == 0
    pool.check_integrity()


def test_shared_block_is_available_only_after_its_last_owner() -> None:
    pool = BlockPool(1)
    [block_id] = pool.take(1)
    pool.register(block_id, name(7))
    pool.share([block_id])
    pool.release([block_id])
    assert (pool.num_available, pool.num_owners(block_id)) == (0, 1)
    pool.release([block_id])
    assert (pool.num_available, pool.num_cached) == (1, 1)
    pool.check_integrity()


def test_second_block_with_the_same_tokens_stays_unnamed() -> None:
    pool = BlockPool(2)
    first, second = pool.take(2)
    pool.register(first, name(7))
    pool.register(second, name(7))
    pool.release([first, second])
    assert pool.index.get(name(7)) == first
    assert pool.num_cached == 1
    pool.check_integrity()


def test_forgotten_prefixes_become_free_blocks_and_owned_ones_stay() -> None:
    pool = pool_with_cached(4, 3)
    pool.share([0])
    pool.forget_cached()
    assert (pool.num_cached, pool.num_available, len(pool.index)) == (0, 3, 1)
    pool.check_integrity()


@pytest.mark.parametrize(
    "misuse",
    [lambda pool: pool.take(3), lambda pool: pool.release([0]), lambda pool: pool.share([0])],
    ids=["take too many", "release what is free", "share what is free"],
)
def test_misuse_is_our_bug(misuse: Callable[[BlockPool], object]) -> None:
    pool = BlockPool(2)
    with pytest.raises(AssertionError):
        misuse(pool)


class PoolUse(RuleBasedStateMachine):
    """Sequences that come, share, register and go, against a model of plain sets."""

    @initialize(num_blocks=st.integers(1, 12))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.tables: list[list[int]] = []
        self.named: dict[int, bytes] = {}
        self.count = 0

    @rule(count=st.integers(1, 5))
    def take(self, count: int) -> None:
        if count <= self.pool.num_available:
            owned = {block_id for table in self.tables for block_id in table}
            taken = self.pool.take(count)
            assert not owned & set(taken)
            assert len(set(taken)) == count
            for block_id in taken:
                self.named.pop(block_id, None)
            self.tables.append(taken)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from(data.draw(st.sampled_from(self.tables))))
        self.count += 1
        self.pool.register(block_id, name(self.count))
        self.named.setdefault(block_id, name(self.count))

    @precondition(lambda self: self.named)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from(sorted(self.named)))
        self.pool.share([block_id])
        self.tables.append([block_id])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.tables.remove(table)
        self.pool.release(table)

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        owned = {block_id for table in self.tables for block_id in table}
        assert self.pool.num_owned == len(owned)
        assert self.pool.num_cached == len(self.named.keys() - owned)
        for block_id, block_name in self.named.items():
            assert self.pool.index.get(block_name) == block_id


TestPoolUse = PoolUse.TestCase
TestPoolUse.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

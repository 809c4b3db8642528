"""Blocks a request holds, finds and leaves behind."""

from __future__ import annotations

import pytest

from octavo.cache.kv_cache_manager import KVCacheManager
from octavo.request import Request
from scheduler_world import make_request

PROMPT = list(range(50, 60))


def admit(manager: KVCacheManager, request: Request) -> list[int]:
    """Allocate and compute the whole prompt; returns the shared blocks."""
    manager.prepare(request)
    prefix = manager.find_prefix(request)
    before = manager.num_free_blocks
    expected = manager.num_blocks_to_take(request, prefix)
    manager.allocate(request, prefix)
    assert before - manager.num_free_blocks == expected
    manager.register(request, 0, len(request.token_ids))
    return prefix


def manager_with(num_blocks: int = 8) -> KVCacheManager:
    return KVCacheManager(num_blocks, 4)


def test_equal_prompt_shares_its_full_blocks_while_they_are_held() -> None:
    manager = manager_with()
    a, b = make_request("a", PROMPT), make_request("b", PROMPT)
    admit(manager, a)
    assert admit(manager, b) == a.block_ids[:2]
    assert manager.pool.num_owned == 4
    manager.check_integrity([a, b])


def test_equal_prompt_revives_the_blocks_of_one_that_has_ended() -> None:
    manager = manager_with()
    a, b = make_request("a", PROMPT), make_request("b", PROMPT)
    admit(manager, a)
    held = a.block_ids
    manager.free(a)
    assert manager.pool.num_owned == 0
    assert admit(manager, b) == held[:2]
    manager.check_integrity([b])


def test_last_token_of_a_known_prompt_is_left_to_compute() -> None:
    manager = manager_with()
    admit(manager, make_request("a", PROMPT[:8]))
    assert len(admit(manager, make_request("b", PROMPT[:8]))) == 1


@pytest.mark.parametrize("tenants", [(1, 2), (None, None)])
def test_nothing_is_shared_without_a_common_key(tenants: tuple[int | None, int | None]) -> None:
    manager = manager_with()
    admit(manager, make_request("a", PROMPT, tenant=tenants[0]))
    assert admit(manager, make_request("b", PROMPT, tenant=tenants[1])) == []


def test_hits_are_counted_in_tokens() -> None:
    manager = manager_with()
    admit(manager, make_request("a", PROMPT))
    admit(manager, make_request("b", PROMPT))
    assert (manager.prefix_queries, manager.prefix_hits) == (20, 8)


def test_output_blocks_are_hashed_as_they_fill() -> None:
    manager = manager_with()
    a = make_request("a", PROMPT)
    admit(manager, a)
    a.token_ids += [1, 2]  # positions 10 and 11 fill the third block
    manager.register(a, 10, 12)
    b = make_request("b", [*PROMPT, 1, 2, 3])
    assert admit(manager, b) == a.block_ids[:3]


def test_prompt_hashed_at_intake_is_not_hashed_again() -> None:
    manager = manager_with()
    a, b = make_request("a", PROMPT), make_request("b", PROMPT)
    admit(manager, a)
    b.block_hashes = list(a.block_hashes)
    before = b.block_hashes
    manager.prepare(b)
    assert b.block_hashes is before
    assert before == a.block_hashes

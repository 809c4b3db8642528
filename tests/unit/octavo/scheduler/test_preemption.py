"""Who gives way: as few as will do, the last in order first, nobody in vain."""

from __future__ import annotations

from octavo.cache.block_pool import BlockPool
from octavo.request import Request
from octavo.scheduler.preemption import last_in_order, victims_for
from scheduler_world import make_request


def running(pool: BlockPool, *priorities: int, blocks: int = 2) -> list[Request]:
    """Requests a, b, … in order of arrival, each with blocks of its own."""
    requests = []
    for i, priority in enumerate(priorities):
        request = make_request(chr(ord("a") + i), priority=priority)
        request.order = (priority, 0.0, 0.0, i)
        request.block_ids = pool.take(blocks)
        requests.append(request)
    return requests


def choose(
    pool: BlockPool,
    requests: list[Request],
    *,
    rows: int = 0,
    blocks: int = 0,
    prefix: list[int] | None = None,
    watermark: int = 0,
) -> list[str] | None:
    waiting = make_request("w", priority=0)
    victims = victims_for(
        waiting,
        requests,
        pool,
        prefix=prefix or [],
        num_rows=rows,
        num_blocks=blocks,
        watermark=watermark,
    )
    return None if victims is None else [victim.id for victim in victims]


def test_last_in_order_is_the_worst_priority_then_the_latest() -> None:
    assert last_in_order(running(BlockPool(9), 1, 2, 2, 0)).id == "c"


def test_only_worse_priorities_give_way() -> None:
    pool = BlockPool(8)
    assert choose(pool, running(pool, 0, 0, -1), rows=1) is None


def test_a_row_costs_one_victim_and_blocks_as_many_as_needed() -> None:
    pool = BlockPool(8)
    requests = running(pool, 1, 2, 1)
    assert choose(pool, requests, rows=1) == ["b"]
    assert choose(pool, requests, blocks=3) == ["b", "c"]


def test_nobody_is_preempted_in_vain() -> None:
    pool = BlockPool(8)
    assert choose(pool, running(pool, 1, 0), blocks=3) is None


def test_block_shared_by_two_victims_is_gained_once_both_are_gone() -> None:
    pool = BlockPool(8)
    a, b = running(pool, 1, 1, blocks=1)
    a.block_ids += b.block_ids
    pool.share(b.block_ids)
    assert choose(pool, [a, b], blocks=1) == ["b", "a"]
    assert choose(pool, [a, b], blocks=3) is None


def test_blocks_the_newcomer_shares_are_no_gain() -> None:
    pool = BlockPool(8)
    requests = running(pool, 1)
    assert choose(pool, requests, blocks=2) == ["a"]
    assert choose(pool, requests, blocks=2, prefix=requests[0].block_ids[:1]) is None


def test_watermark_holds_only_while_others_run_on() -> None:
    pool = BlockPool(8)
    requests = running(pool, 1, 1)
    assert choose(pool, requests, blocks=2, watermark=1) == ["b", "a"]
    assert choose(pool, requests, blocks=4, watermark=1) == ["b", "a"]
    assert choose(pool, [*requests, *running(pool, 0)], blocks=4, watermark=1) is None

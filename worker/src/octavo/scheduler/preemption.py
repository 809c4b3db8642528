"""Who has to give way when rows or blocks run out. Pure choices; others act on them.

Knows the order of requests and the owners of blocks; changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from operator import attrgetter

from octavo.cache.block_pool import BlockPool
from octavo.request import Request

_ORDER = attrgetter("order")


def in_order(requests: Collection[Request]) -> list[Request]:
    """First in order first."""
    return sorted(requests, key=_ORDER)


def last_in_order(running: Collection[Request]) -> Request:
    """The running request that gives way first."""
    return max(running, key=_ORDER)


def victims_for(
    request: Request,
    running: Collection[Request],
    pool: BlockPool,
    *,
    prefix: list[int],
    num_rows: int,
    num_blocks: int,
    watermark: int,
) -> list[Request] | None:
    """Fewest running requests of worse priority whose end makes room for a waiting one.

    ``num_rows`` and ``num_blocks`` are what it lacks, without the ``watermark`` of blocks that
    must stay free while others run. ``prefix`` holds the blocks it would share: freeing those
    gains nothing. Victims are last in order first; None if all together would not do, so
    that nobody is preempted in vain.
    """
    worse = [r for r in running if r.priority > request.priority]
    worse.sort(key=_ORDER, reverse=True)
    released: dict[int, int] = dict.fromkeys(prefix, 0)
    kept = frozenset(prefix)
    gained = 0
    for count, victim in enumerate(worse, start=1):
        for block_id in victim.block_ids:
            released[block_id] = released.get(block_id, 0) + 1
            is_freed = released[block_id] == pool.num_owners(block_id)
            gained += is_freed and block_id not in kept
        reserve = watermark if count < len(running) else 0
        if count >= num_rows and gained >= num_blocks + reserve:
            return worse[:count]
    return None

import random

from octavo.request import Request
from octavo.scheduler.prefix_sharers import PrefixSharers
from scheduler_world import make_request

BLOCK_SIZE = 4


def holder(name: str, blocks: list[int], num_full_blocks: int | None = None) -> Request:
    request = make_request(name, len(blocks) * BLOCK_SIZE)
    request.block_ids = list(blocks)
    full = len(blocks) if num_full_blocks is None else num_full_blocks
    request.num_computed_tokens = full * BLOCK_SIZE
    return request


def shared(sharers: PrefixSharers, *requests: Request) -> list[int]:
    return sharers.shared_lens(requests)


def joined(*requests: Request) -> PrefixSharers:
    sharers = PrefixSharers(BLOCK_SIZE)
    for request in requests:
        sharers.join(request)
    return sharers


def test_requests_share_the_blocks_they_have_in_common() -> None:
    a, b = holder("a", [1, 2, 3, 4]), holder("b", [1, 2, 3, 9, 10])
    assert shared(joined(a, b), a, b) == [12, 12]


def test_a_block_that_is_not_full_is_not_shared() -> None:
    a, b = holder("a", [1, 2, 3, 4]), holder("b", [1, 2, 3, 4], num_full_blocks=2)
    assert shared(joined(a, b), b, a) == [8, 8]


def test_one_request_shares_with_nobody() -> None:
    a, b = holder("a", [1, 2]), holder("b", [3, 4])
    assert shared(joined(a, b), a, b) == []
    assert shared(joined(), a) == []


def test_the_group_that_saves_most_wins_and_others_share_nothing() -> None:
    few = [holder(f"few{i}", [1, 2, 3, 4, 5, 6, 10 + i]) for i in range(2)]
    many = [holder(f"many{i}", [7, 8, 9, 20 + i]) for i in range(4)]
    assert shared(joined(*few, *many), few[0], *many, few[1]) == [0, 12, 12, 12, 12, 0]


def test_a_group_shares_more_once_its_shortest_member_has_left() -> None:
    a, b = holder("a", [1, 2, 3, 4]), holder("b", [1, 2, 3, 4])
    short = holder("short", [1, 8])
    sharers = joined(a, short, b)
    assert shared(sharers, a, short, b) == [4, 4, 4]
    short.block_ids = []
    sharers.leave({short})
    assert shared(sharers, a, b) == [16, 16]


def test_several_may_leave_whose_blocks_are_gone_already() -> None:
    requests = [holder(f"r{i}", [1, 2, *range(3, 3 + i)]) for i in range(5)]
    sharers = joined(*requests)
    for request in requests[:3]:
        request.block_ids = []
    sharers.leave(set(requests[:3]))
    assert shared(sharers, *requests[3:]) == [20, 20]
    sharers.leave(set(requests[3:]))
    assert shared(sharers) == []


def test_whatever_joins_and_leaves_the_group_shares_what_its_members_do() -> None:
    draw = random.Random(3)
    sharers, present = PrefixSharers(BLOCK_SIZE), {}
    for step in range(300):
        if present and draw.random() < 0.45:
            gone = draw.sample(sorted(present), draw.randint(1, len(present)))
            leaving = {present.pop(name) for name in gone}
            for request in leaving:
                request.block_ids = []
            sharers.leave(leaving)
        else:
            depth = draw.randint(1, 6)
            blocks = [*range(depth), *range(100 * step + 100, 100 * step + 103)]
            present[f"r{step}"] = request = holder(f"r{step}", blocks)
            sharers.join(request)
        lens = sharers.shared_lens(present.values())
        tables = [request.block_ids for request in present.values()]
        common = 0
        while tables and all(table[common] == tables[0][common] for table in tables):
            common += 1
            if common == min(map(len, tables)):
                break
        assert lens == ([common * BLOCK_SIZE] * len(tables) if len(tables) > 1 else [])
